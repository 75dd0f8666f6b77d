/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who may ask for what, in one function, called by server.c before a request
 * is handled. The peer is who the kernel says it is. Owns nothing.
 *
 * Whoever could connect is root, the daemon's own user, or a member of the
 * socket's group: the socket's file mode sees to that. Members of the group
 * operate VMs that are known; they must not be able to have a program of their
 * choice run as another user. So what names a command line or a process is for
 * root, and a target binary that a member names must be one that only root can
 * have put there.
 */
#include "access.h"

#include "message.h"

#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

/* As many as the kernel follows. */
#define LINKS_MAX 40

/*
 * The file, every directory above it, and every link on the way: root's, and nobody else
 * may write. Not where the links lead today: the path is followed again when it is executed.
 */
static bool only_root_writes(const char *path, unsigned *links)
{
	size_t len = strlen(path);

	for (size_t end = 1; end <= len; end++) {
		char at[PATH_MAX], target[PATH_MAX];
		struct stat st;
		ssize_t n;

		/* The root directory, then up to each slash, then all of it. */
		if (end > 1 && end < len && path[end] != '/')
			continue;
		if (snprintf(at, sizeof(at), "%.*s", (int)end, path) >= (int)sizeof(at) ||
		    lstat(at, &st) < 0 || st.st_uid != 0)
			return false;
		if (!S_ISLNK(st.st_mode)) {
			if (st.st_mode & (S_IWGRP | S_IWOTH))
				return false;
			continue;
		}
		n = (*links)++ < LINKS_MAX ? readlink(at, target, sizeof(target) - 1) : -1;
		if (n <= 0)
			return false;
		target[n] = '\0';
		/* A relative one begins where it stands. */
		*(target[0] == '/' ? at : strrchr(at, '/') + 1) = '\0';
		if (strlen(at) + (size_t)n >= sizeof(at) ||
		    !only_root_writes(strcat(at, target), links))
			return false;
	}
	return true;
}

static int check_binary(const char *binary, struct error *err)
{
	unsigned links = 0;

	if (!binary[0] || (binary[0] == '/' && only_root_writes(binary, &links)))
		return 0;
	error_set(err, -EACCES, "%s could be written by others than root", binary);
	error_hint(err, "name a binary that is installed, or ask as root");
	return -EACCES;
}

int access_check(const struct peer *peer, const Envelope *request, struct error *err)
{
	if (peer->uid == 0 || peer->uid == geteuid())
		return 0;
	switch (request->body_case) {
	case BODY(RUN):
	case BODY(ADOPT):
	case BODY(FORGET):
	case BODY(LIBVIRT_STARTING):
		error_set(err, -EACCES,
			  "%s is for root: it decides which processes upgraded handles",
			  envelope_name(request));
		return -EACCES;
	case BODY(CHECK):
		return check_binary(request->check->binary, err);
	case BODY(UPGRADE):
		return check_binary(request->upgrade->binary, err);
	default:
		return 0;
	}
}
