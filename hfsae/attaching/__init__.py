"""What an attachment is made of.

mount.py, mounting.py, belonging.py     the dictionary at its module, how it gets there, whether it belongs there
edits.py, methods.py                    what a user says: `att.ablate(...) | att.steer(...)`
plan.py, scope.py, editing.py           what runs: the parts that apply to a thread, on one activation
checkpointing.py, batching.py           forwards that run again, or that mix requests
reading.py                              what fires: recordings and strongest features
attachment.py                           all of it, as users hold it
"""
