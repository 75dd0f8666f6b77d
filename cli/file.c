/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Files for others to read: written beside the place where they go, and renamed when they
 * are whole. If this process dies meanwhile, PATH.new is left, and PATH is what it was.
 */
#include "file.h"

#include <stdbool.h>
#include <string.h>

int file_begin(struct file *file, const char *path, struct error *err)
{
	if (!strcmp(path, "-")) {
		file->f = stdout;
		return 0;
	}
	file->path = strdup(path);
	if (!file->path || asprintf(&file->fresh, "%s.new", path) < 0) {
		file->fresh = NULL;
		return error_set(err, -ENOMEM, "out of memory");
	}
	file->f = fopen(file->fresh, "we");
	return file->f ? 0 : error_errno(err, -errno, "%s", file->fresh);
}

int file_finish(struct file *file, struct error *err)
{
	bool failed = ferror(file->f);
	FILE *f = file->f;

	if (f == stdout) {
		file->f = NULL;
		return fflush(f) || failed ? error_errno(err, -EIO, "cannot write the output") : 0;
	}
	file->f = NULL;
	if (fclose(f))
		return error_errno(err, -errno, "%s", file->fresh);
	if (failed)
		return error_errno(err, -EIO, "%s", file->fresh);
	if (rename(file->fresh, file->path) < 0)
		return error_errno(err, -errno, "%s", file->path);
	free(file->fresh);
	file->fresh = NULL;
	return 0;
}

void file_abandon(struct file *file)
{
	if (file->f && file->f != stdout)
		fclose(file->f);
	if (file->fresh)
		(void)unlink(file->fresh);
	free(file->path);
	free(file->fresh);
	*file = (struct file)FILE_INIT;
}
