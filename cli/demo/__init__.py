"""`hsm-endorser demo`: the main job, end to end, on tokens, with everything compared that it claims."""
