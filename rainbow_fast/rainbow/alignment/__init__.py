# SPDX-License-Identifier: BSD-3-Clause
"""From moments to alignments: polar factor, regression, several references, classifier."""
