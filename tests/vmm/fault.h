/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Mishaps that a test orders: see fault.c. */
#ifndef TINYVMM_FAULT_H
#define TINYVMM_FAULT_H

/*
 * Does what the file @path (NULL: nothing) orders for @role ("source", "target")
 * at @point. 0, or the -EIO of an ordered failure.
 */
int fault_at(const char *path, const char *role, const char *point);

#endif
