"""Ask models for their answers to labelled texts, and say how good those are and how surely.

Export judges int8 against fp32 with it, a bench every contestant against the baseline. Nothing here loads torch.
"""
