"""graftwork adapts one frozen pretrained base to many tasks by deltas of kilobytes."""
