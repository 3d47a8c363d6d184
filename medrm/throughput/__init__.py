"""`medrm throughput`: how fast a model trains and scores with shared prefixes, and without.

`throughput.json` holds what was measured on what, whether it is complete (the file is written anew
with each finished task and number of answers, so that an interrupt keeps the others), and a row for
each task, number of answers (K) and variant:

- separate: a padded row for each answer, with an image of its own; the tower runs for each.
- shared_prefix: what the answers of a case share stands once.

All use sdpa and no LM head. Training is LoRA on the decoder with its loss, backward and optimiser
step (at a learning rate of 0), the vision tower frozen; batches are made, and moved to the device,
before the clock runs.

- cases_per_s, unique_tokens_per_s: of the median round. Unique tokens are those of the shared form.
- ratio_to_separate: the time of separate rows by that of the variant, in each round.
- ideal_ratio: that ratio if a token cost the same wherever it stands (as in separate rows), with
  the vision tower as it is computed.
- flops, share_of_bound: operations of one step as counted, and their share of what the device could
  do in the row's time at its best measured rate of matrix products.
- peak_memory_bytes: most bytes of tensors at any moment of a step, the model included.
- padded_share: of the places in the batch. All answers are equally long, so that what sharing
  gains is not mixed with what the absence of padding gains.

`--quick` measures a quarter of the tokens, training with the fewest answers and scoring with the
most; the report's shape says so, and its numbers are for a first look.
"""
