"""What remains of a run, as one page.

verdict     what came of it, in a sentence
charts      its curves
parts       its tables
page        `write_report`: all of it, in report.html
"""
