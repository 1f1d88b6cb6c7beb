"""bertdyn shows what fine-tuning does to the features of BERT-family encoders.

The parts, in the order in which data flows through them: `data`, `models`, `features`,
`geometry`, `tasks`, `training`, `plots`, `tracking`, `steps`. Each imports only parts before it
in that list. Nothing is imported here, so that `--help` stays quick.
"""

__version__ = "0.1.0"
