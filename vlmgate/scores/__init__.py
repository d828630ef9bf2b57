"""Turn the K readings of one image into scores; start with `score.Scorer`.

    diversity   how much captions differ, under a kernel that compares two of them (words; encoders: a model's)
    answers     what an answer says, and the shares of K answers; answer_probability: how probable it is
    refusals    captions and answers that are no reading
    novelty     how far an image lies from a reference; reference: where that comes from

To add a score: compute it in `diversity`, add its field to `data.Scores` and `data.Record` (the column), and its range
to `gate.rules.COLUMNS` (which lets --limit, --score and calibrate take it); then name it in `manual/columns.md`.
"""
