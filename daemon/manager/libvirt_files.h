/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The files in which libvirt's QEMU driver remembers its domains: see libvirt_files.c. */
#ifndef UPGRADED_LIBVIRT_FILES_H
#define UPGRADED_LIBVIRT_FILES_H

#include "manager/libvirt_status.h"

#define LIBVIRT_STATUS_DIR "/run/libvirt/qemu"

/* The process that has the QEMU driver, libvirtd or virtqemud; 0: none is known. It may be dead. */
pid_t libvirt_daemon_pid(void);

/* What libvirt knows of the running domain @name. -ENOENT: it does not run. */
int libvirt_files_read(const char *name, struct libvirt_status **ret, struct error *err);

/* Makes it what libvirt's daemon reads when it starts: the status, and the pid file. */
int libvirt_files_write(const struct libvirt_status *s, struct error *err);

/* In the definition with which the domain @name is started the next time, if it has one. */
int libvirt_files_set_emulator(const char *name, const char *emulator, struct error *err);

#endif
