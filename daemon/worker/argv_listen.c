/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which descriptor of the source is the listening socket that an option named
 * by host and port, or by an abstract name? Such an address cannot be bound a
 * second time while the source lives, so the target is given the source's own
 * socket. Asked by the rules for chardevs and VNC; looks at the facts only.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <arpa/inet.h>
#include <string.h>

/* Splits "tcp:0.0.0.0:5900" and "tcp6:[::]:4444". False: it is none of them. */
static bool split(const char *listen, char *host, size_t size, int *ret_port)
{
	const char *start, *end;

	if (!listen || strncmp(listen, "tcp", 3))
		return false;
	start = strchr(listen, ':');
	end = strrchr(listen, ':');
	if (!start || end == start)
		return false;
	*ret_port = atoi(end + 1);
	start++;
	if (*start == '[' && end[-1] == ']') {
		start++;
		end--;
	}
	if ((size_t)(end - start) >= size)
		return false;
	memcpy(host, start, (size_t)(end - start));
	host[end - start] = '\0';
	return true;
}

static bool is_literal(const char *host)
{
	unsigned char addr[sizeof(struct in6_addr)];

	return inet_pton(AF_INET, host, addr) == 1 || inet_pton(AF_INET6, host, addr) == 1;
}

/* A name ("localhost") may have become any address, a literal only itself. */
static bool host_fits(const char *want, const char *have)
{
	return !*want || !is_literal(want) || !strcmp(want, have);
}

int listen_find_tcp(struct planner *p, const char *subject, const struct listen_want *want,
		    int *ret_port)
{
	int found = -ENOENT, port;
	char host[64];

	for (size_t i = 0; i < p->in->n_fds; i++) {
		const struct source_fd *fd = &p->in->fds[i];

		if (!split(fd->listen, host, sizeof(host), &port) ||
		    port < want->port || port > (want->to ?: want->port) ||
		    !host_fits(want->host, host))
			continue;
		if (found < 0) {
			found = fd->fd;
			*ret_port = port;
		} else if (port == *ret_port) {
			plan_warn(p, "argv.listen", subject, "Name one address instead of a host",
				  "The source also listens on %s; only its first address is carried",
				  fd->listen);
		}
	}
	return found;
}

int listen_find_unix(const struct planner *p, const char *name)
{
	for (size_t i = 0; i < p->in->n_fds; i++) {
		const char *listen = p->in->fds[i].listen;

		if (listen && !strncmp(listen, "unix:", 5) && !strcmp(listen + 5, name))
			return p->in->fds[i].fd;
	}
	return -ENOENT;
}
