/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A file that appears when it is whole: see file.c. */
#ifndef UPGRADED_FILE_H
#define UPGRADED_FILE_H

#include "cleanup.h"
#include "error.h"

struct file {
	FILE *f; /* to be written to */
	char *path, *fresh;
};

#define FILE_INIT \
	{         \
		0 \
	}

/* @path "-" is stdout. */
int file_begin(struct file *file, const char *path, struct error *err);

/* What could not be written is an error here. */
int file_finish(struct file *file, struct error *err);

/* Leaves the file of before alone; nothing after file_finish(). */
void file_abandon(struct file *file);

#endif
