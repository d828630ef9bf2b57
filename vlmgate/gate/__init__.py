"""Decide which readings are accepted, and give the reason; start with `rules.decide`.

    rules        limits, gates, and the decision on each row
    reasons      every reason in words, for tables, sentences and the review page
    run_gate     the gate of one run, and whether its images look like the calibrated ones (drift)
    file         gate files; one_row: a single row judged by one
    early_stop   when enough samples of an image are drawn

To add a reason for routing: add its code to `data.Reason`, its words to `reasons.REASON_WORDS`, and where it applies:
`scores.score` for a reading that no score can save, else `rules`.
"""
