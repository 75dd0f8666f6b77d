/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Mishaps that a test orders: see fault.c. */
#ifndef TINYVMM_FAULT_H
#define TINYVMM_FAULT_H

#include "upgraded.h"

/* The callbacks @ops with their @userdata, and before and after them what the file @path orders. */
struct faulty {
	const char *path; /* NULL: nothing */
	const struct upgraded_ops *ops;
	void *userdata;
};

/* For upgraded_new(), with a struct faulty. */
extern const struct upgraded_ops faulty_ops;

#endif
