# SPDX-License-Identifier: BSD-3-Clause
"""The Triton kernels of the ops of the same names. Importing a module of this folder imports triton."""
