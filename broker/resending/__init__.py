"""Sending stored events again, for people: dead letters that are looked at, redriven or dropped, and replays."""
