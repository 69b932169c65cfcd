"""The tests: they mirror the rooms. Modules beside this file are what several rooms' tests share."""
