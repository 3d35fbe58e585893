"""What rule tables are made of and run by."""
