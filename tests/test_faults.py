"""Faults, in the short form: whatever the disk or a call does, it costs one line or one connection."""
import faults


def test_a_fault_of_the_file_layer_loses_nothing():
    faults.file_layer(1)


def test_a_disk_that_stalls_cuts_nobody():
    faults.stalled_disk(0.5)


def test_a_full_disk_takes_what_fits():
    faults.full_disk()


def test_what_is_raised_costs_one_connection():
    faults.raising(1, 8)
