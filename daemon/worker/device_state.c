/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The memfd with a guest's device state, which says itself what it is good for.
 * It is written and marked by the worker and held by the daemon and by systemd;
 * the daemon reads the marks to decide whether a target may be started from it
 * when both VMMs are dead.
 *
 * The marks are seals. They are set in one step, need no answer from anybody
 * while the guest stands still, belong to the memory and not to the process that
 * set them, and cannot be taken off:
 *
 *   none               part of a state
 *   shrink, grow       whole: the guest stands still, and this is where
 *   and future writes  used: source or target was told to run
 *
 * What if the worker dies right now?
 *   before "whole"  the source is asked to go on; if it is dead too, the guest is lost
 *   after it        whoever comes next may load it, again and again
 *   after "used"    it is never loaded again. Whoever was about to be told to run is
 *                   told by the next worker; if he dies before he heard it, the guest
 *                   is lost, for nobody can see whether it ran. The mark comes right
 *                   before the word.
 */
#include "device_state.h"

#include "cleanup.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

int device_state_make(int *ret_fd)
{
	int fd = memfd_create("upgraded-device-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

int device_state_get(int fd, enum device_state *ret_state)
{
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0)
		return -errno;
	/* A VMM that has the fd may have sealed it: it must be possible to mark it. */
	if (seals & F_SEAL_SEAL)
		return -EPERM;
	if (seals & F_SEAL_FUTURE_WRITE)
		*ret_state = DEVICE_STATE_USED;
	else if (seals & F_SEAL_SHRINK)
		*ret_state = DEVICE_STATE_WHOLE;
	else
		*ret_state = DEVICE_STATE_PART;
	return 0;
}

uint64_t device_state_written_us(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || !st.st_size)
		return 0;
	return (uint64_t)st.st_mtim.tv_sec * 1000000 + (uint64_t)st.st_mtim.tv_nsec / 1000;
}

int device_state_complete(int fd)
{
	return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0 ? -errno : 0;
}

int device_state_use(int fd)
{
	if (fd < 0)
		return 0;
	return fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) < 0 ? -errno : 0;
}
