/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ownership in plain C: a variable marked _cleanup_(f) gives back what it
 * holds when it goes out of scope; TAKE_*() hands the ownership on.
 * An fd that is none is -EBADF, so that a stray use fails loudly.
 */
#ifndef UPGRADED_CLEANUP_H
#define UPGRADED_CLEANUP_H

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

/* Closes *fd if it is one and forgets it. Keeps errno. */
static inline void closep(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -EBADF;
	errno = saved;
}

static inline void freep(void *p)
{
	free(*(void **)p);
}

static inline void fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void closedirp(DIR **d)
{
	if (*d)
		closedir(*d);
}

/* Frees a NULL-terminated vector of strings and the vector. */
static inline void strv_freep(char ***v)
{
	if (!*v)
		return;
	for (char **s = *v; *s; s++)
		free(*s);
	free(*v);
}

#define _cleanup_free_ _cleanup_(freep)
#define _cleanup_close_ _cleanup_(closep)
#define _cleanup_fclose_ _cleanup_(fclosep)
#define _cleanup_closedir_ _cleanup_(closedirp)
#define _cleanup_strv_ _cleanup_(strv_freep)

#define TAKE_FD(fd)                    \
	({                             \
		int *fd__ = &(fd);     \
		int taken__ = *fd__;   \
		*fd__ = -EBADF;        \
		taken__;               \
	})

#define TAKE_PTR(p)                           \
	({                                    \
		__typeof__(p) *p__ = &(p);    \
		__typeof__(p) taken__ = *p__; \
		*p__ = NULL;                  \
		taken__;                      \
	})

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#endif
