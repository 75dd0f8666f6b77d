/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A scripted QEMU at the other end of a monitor: see qmp_peer.c. */
#ifndef UPGRADED_QMP_PEER_H
#define UPGRADED_QMP_PEER_H

#include "qmp.h"

#include <sys/types.h>

#define GREETING                                                                            \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 13, \"minor\": 0, \"major\": 10}, " \
	"\"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define CAPS "{\"return\": {}, \"id\": 1}\r\n"

/* One line for the peer: what it waits for (NULL: nothing), then what it says. */
struct step {
	const char *heard;
	const char *says;
};

struct peer {
	pid_t pid;
	struct waiter w;
	struct qmp *q;
	struct error err;
	int r; /* of qmp_open() */
};

void say(int fd, const char *text, size_t len);
/* Reads until @word came. */
void hear(int fd, const char *word);
/* Until the monitor is closed. */
void linger(int fd);

/* Starts the peer, which does @play and lingers; then qmp_open(), whose result is p->r. */
void open_peer(struct peer *p, void (*play)(int fd, const void *), const void *data);
void close_peer(struct peer *p);

/* @play: does the struct step that @data points to, up to an empty one. */
void play_steps(int fd, const void *data);

#endif
