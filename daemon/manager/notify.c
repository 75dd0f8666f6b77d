/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Telling systemd something on behalf of another process, which knows nothing
 * of it: QEMU does not speak sd_notify. Used by the daemon (MAINPID=, STATUS=)
 * and by the launcher (READY=1). Owns nothing.
 *
 * Why not sd_pid_notify(): when it may not send with the other process's pid,
 * or that process is gone, it sends again with the caller's own. systemd would
 * then take a MAINPID= that is meant for the VM's unit as upgraded's own main
 * process. Here such a message fails instead.
 *
 * How systemd (252 to 262 read alike here) takes it: the sender's pid in the
 * credentials, which the kernel lets a process with CAP_SYS_ADMIN choose, picks
 * the unit by cgroup and must be the unit's main process (NotifyAccess=main).
 * Newer ones also look at SCM_PIDFD, which the kernel makes from the same pid.
 */
#include "notify.h"

#include "cleanup.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#define NOTIFY_SOCKET_PATH "/run/systemd/notify"

int notify_as(pid_t pid, const char *state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX, .sun_path = NOTIFY_SOCKET_PATH };
	struct ucred cred = { .pid = pid, .uid = getuid(), .gid = getgid() };
	struct iovec iov = { (void *)state, strlen(state) };
	struct timeval patience = { .tv_sec = 1 };
	union {
		struct cmsghdr align;
		char data[CMSG_SPACE(sizeof(struct ucred))];
	} control = { 0 };
	struct msghdr msg = {
		.msg_name = &addr,
		.msg_namelen = sizeof(addr),
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	if (pid <= 0)
		return -ESRCH;
	if (fd < 0)
		return -errno;
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_CREDENTIALS;
	c->cmsg_len = CMSG_LEN(sizeof(cred));
	memcpy(CMSG_DATA(c), &cred, sizeof(cred));
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return sendmsg(fd, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}
