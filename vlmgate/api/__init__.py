"""`scan`, `calibrate` and `Gate` for Python programs, without the command line."""

from vlmgate.api.functions import Calibration, Gate, Progressed, ScanResult, calibrate, scan

__all__ = ["Calibration", "Gate", "Progressed", "ScanResult", "calibrate", "scan"]
