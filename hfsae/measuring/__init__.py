"""What an evaluation is made of.

passes.py, replay.py                    runs of the model clean and edited, sharing what they have in common
scoring.py                              losses of a run
rounds.py                               the two rounds over the data, and their sums
evaluation.py, drawing.py               the result, as a table and as a picture
"""
