"""`bridge inbox carry`: copy all inboxes from one store into another."""
