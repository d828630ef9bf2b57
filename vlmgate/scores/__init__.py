"""Turn the K readings of one image into scores; start with `score.Scorer`.

What a caption claims, one step after the other:

    language    the language of a text, and the files of `languages/`; to add a language, add a file
    phrases     a text becomes marks: a finding, a negator, a hedge, a comma
    sentence    the marks of one sentence, and what stands where; binding: what a negator or hedge reaches
    measures    sizes and comparisons
    findings    all of that: `Vocabulary.claims` of a caption; claims: the same in words, for people

What becomes of claims, and of answers:

    diversity   how much captions differ, under a kernel (findings; words; encoders: those that need a model)
    answers     what an answer says, and the shares of K answers; its steps are answer_forms, answer_words,
                answer_tokens, answer_clauses and answer_sentences; answer_probability: how probable it is
    refusals    captions and answers that are no reading
    novelty     how far an image lies from a reference; reference: where that comes from

To add a score: compute it in `diversity`, add its field to `data.Scores` and `data.Record` (the column), and its range
to `gate.rules.COLUMNS` (which lets --limit, --score and calibrate take it); then name it in `manual/columns.md`.
"""
