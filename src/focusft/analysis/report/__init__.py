"""`focusft report`: one page that says whether FocuSFT helped."""

from focusft.analysis.report.page import Report, write_report

__all__ = ["Report", "write_report"]
