/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sockets and pidfiles that have to bear the source's names once the source is
 * dead. Called by the driver's finish(). The names come from the source's
 * command line, which a guest that broke out into its QEMU can rewrite, and the
 * directories may belong to the VM's user, who can plant symbolic links. So each
 * is done by a child that has become what the target is: its user, its groups,
 * its capabilities, its namespaces and root. The target is asked, not the
 * source, because it is the same and alive.
 *
 * If the worker dies here, the next one does all of it again; twice does no harm.
 */
#include "names.h"

#include "spawn.h"

#include <fcntl.h>
#include <string.h>

static int do_rename(const void *data)
{
	const Upgraded__V1__TargetPlan__Rename *n = data;

	/* A worker before us may have done it. */
	return rename(n->from, n->to) < 0 && errno != ENOENT ? -errno : 0;
}

struct pidfile {
	const char *path;
	char text[16];
};

static int do_pidfile(const void *data)
{
	const struct pidfile *p = data;
	size_t len = strlen(p->text);
	/* A FIFO in its place holds nobody up. */
	int fd = open(p->path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC, 0644);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = write(fd, p->text, len);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EIO;
}

static int do_as(pid_t target, int target_pidfd, char *what, int (*work)(const void *),
		 const void *data, struct error *err)
{
	int r = what ? spawn_work(target, target_pidfd, what, work, data, err) : -ENOMEM;

	free(what);
	return r;
}

int names_take_over(const Upgraded__V1__TargetPlan *plan, pid_t target, int target_pidfd,
		    struct error *err)
{
	int r, first = 0;

	for (size_t i = 0; i < plan->n_renames; i++) {
		const Upgraded__V1__TargetPlan__Rename *n = plan->renames[i];
		char *what;

		if (asprintf(&what, "rename %s to %s", n->from, n->to) < 0)
			what = NULL;
		r = do_as(target, target_pidfd, what, do_rename, n, err);
		first = first ?: r;
	}
	for (size_t i = 0; i < plan->n_pidfiles; i++) {
		struct pidfile p = { .path = plan->pidfiles[i] };
		char *what;

		snprintf(p.text, sizeof(p.text), "%d\n", target);
		if (asprintf(&what, "write the pid file %s", p.path) < 0)
			what = NULL;
		r = do_as(target, target_pidfd, what, do_pidfile, &p, err);
		first = first ?: r;
	}
	return first;
}
