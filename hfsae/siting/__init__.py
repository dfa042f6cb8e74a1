"""How a site of a model is found and proved.

stacks.py                               the blocks, from what transformers declares, else from structure
families.py, wirings.py                 rows of data for families whose sites differ, and how blocks are wired
shrinking.py, probes.py                 a tiny model of the same class, run once
proofs.py                               what that run proves
widths.py, tables.py                    how wide a site is, and all sites of a model as a table
"""
