"""The sections of the report, one file each: `testbed.report.section`. The file's name is the section's anchor."""
