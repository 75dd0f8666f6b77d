/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A daemon that only talks: see fake_daemon.c. */
#ifndef UPGRADED_TESTS_FAKE_DAEMON_H
#define UPGRADED_TESTS_FAKE_DAEMON_H

/* Listens on @path in a new process; returns its pid once connects succeed. */
int fake_daemon_start(const char *path);
void fake_daemon_stop(int pid);

/* Serves for ever in this process. */
int fake_daemon_serve(const char *path);

#endif
