/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef WATCH_CONTROL_H
#define WATCH_CONTROL_H

#include <stddef.h>

int control_listen(const char *path);
int control_connect(const char *path);
int control_ask(int fd, const char *command, char **ret_answer);
int control_send_all(int fd, const char *buf, size_t len);

#endif
