"""`train report`: run folders in, one self-contained HTML file out.

The file holds its pictures and charts, needs no network and no script, and escapes everything that comes from outside.
"""

from train.report.write import ReportResult, write_report

__all__ = ["ReportResult", "write_report"]
