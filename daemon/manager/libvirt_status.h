/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What libvirt's QEMU driver remembers of a running domain: see libvirt_status.c. */
#ifndef UPGRADED_LIBVIRT_STATUS_H
#define UPGRADED_LIBVIRT_STATUS_H

#include "error.h"
#include "worker/findings.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* The largest that is looked at; a domain of hundreds of disks has a few hundred KiB. */
#define LIBVIRT_STATUS_MAX (8U << 20)

/* A vCPU's thread. */
struct libvirt_vcpu {
	unsigned id; /* of <vcpu id=>, which is QEMU's cpu-index */
	pid_t tid;
};

struct libvirt_status {
	void *doc; /* libxml2's */
	char *name, *uuid, *state, *reason;
	char *monitor;	/* path of the monitor's socket */
	char *lib_dir;	/* NULL: none */
	char *emulator; /* path as in the live XML; NULL: none */
	pid_t pid;
	struct libvirt_vcpu *vcpus;
	size_t n_vcpus;
};

/* -EINVAL: it is no status of a running QEMU, err says why; -E2BIG; -ENOMEM. */
int libvirt_status_parse(const char *text, size_t len, struct libvirt_status **ret,
			 struct error *err);
void libvirt_status_freep(struct libvirt_status **status);

/*
 * What keeps the process from being changed behind libvirt's back, as blockers:
 * libvirt.state, .job, .block-job, .backup, .monitor, .status-unknown. 0 or -ENOMEM.
 */
int libvirt_status_check(const struct libvirt_status *s, struct findings *findings);

/*
 * Makes it the status of another process: @pid, and the threads of the same vCPUs.
 * @emulator may be NULL: as it was. -EINVAL: the vCPUs are others. Nothing is changed then.
 * @runs: the guest does, though libvirt may have seen it stop for the upgrade.
 */
int libvirt_status_move(struct libvirt_status *s, pid_t pid, const struct libvirt_vcpu *vcpus,
			size_t n_vcpus, const char *emulator, bool runs, struct error *err);

/*
 * The terminal of @chardev ("charserial0", where libvirt's alias is serial0) is @path.
 * One that libvirt knows nothing of is left alone, and what is no terminal is not
 * written. 0 or -ENOMEM.
 */
int libvirt_status_set_pty(struct libvirt_status *s, const char *chardev, const char *path);

/* As it is written to the file; *ret_text is the caller's. */
int libvirt_status_format(const struct libvirt_status *s, char **ret_text, size_t *ret_len);

/*
 * The definition of a domain with another emulator. -EINVAL: it is none, or has no
 * emulator to be replaced. *ret_text is the caller's.
 */
int libvirt_config_set_emulator(const char *text, size_t len, const char *emulator,
				char **ret_text, size_t *ret_len, struct error *err);

#endif
