/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QEMU's two migration channels, with the worker in their middle. Called by
 * the qemu driver; owns only what its ret_* parameters hand out.
 *
 *   cpr    source ── bytes + fds, half-close ──▶ worker ──▶ target
 *          source ◀── HUP: "stop and send" ──── worker ◀── HUP: "I listen"
 *   main   source ── device state, close ─────▶ worker ──▶ target
 *                                                 └──▶ spool (memfd, in custody)
 *
 * The source stops its vCPUs when it sees the HUP of its cpr channel, so the
 * worker decides when by keeping that connection open while the target is
 * being built. If the worker dies, the source sees the HUP, finds nobody on
 * the main channel, fails its migration and runs on; a target without its
 * streams never runs.
 */
#include "channel.h"

#include "device_state.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* What QEMU's receiver takes of one message (SOCKET_MAX_FDS, io/channel-socket.c). */
#define QEMU_FDS_PER_MESSAGE 16

/* Device state is some hundred kilobytes; a display or many disks make it more. */
#define STREAM_USUAL (2 * 1024 * 1024)

/* What nobody honest comes near; a source that does not end would fill the host's memory. */
#define STREAM_MAX (4ULL * 1024 * 1024 * 1024)

/* The cpr state is a list of fd names: a few hundred bytes. More is not one. */
#define CPR_STATE_MAX (1024 * 1024)

void cpr_state_clear(struct cpr_state *s)
{
	free(s->bytes);
	scm_fds_close(&s->fds);
	*s = (struct cpr_state)CPR_STATE_INIT;
}

static int unix_address(const char *path, struct sockaddr_un *ret_addr, struct error *err)
{
	*ret_addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(ret_addr->sun_path))
		return error_set(err, -ENAMETOOLONG, "socket path too long: %s", path);
	strcpy(ret_addr->sun_path, path);
	return 0;
}

int channel_listen(const char *path, uid_t uid, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = -EBADF;
	struct sockaddr_un addr;
	int r;

	r = unix_address(path, &addr, err);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_errno(err, -errno, "no socket");
	/*
	 * The source connects with its own uid, which owns the directory already
	 * and could put a link there: so it is made as that user, not given away.
	 */
	setfsuid(uid);
	(void)unlink(path);
	r = bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ? -errno : 0;
	setfsuid(geteuid());
	if (r < 0)
		return error_errno(err, r, "cannot bind %s", path);
	if (listen(fd, 1) < 0)
		return error_errno(err, -errno, "cannot listen on %s", path);
	*ret_fd = TAKE_FD(fd);
	return 0;
}

int channel_accept(struct waiter *w, int listener, int *ret_fd, struct error *err)
{
	int r, fd;

	r = wait_for(w, listener, POLLIN, err);
	if (r < 0)
		return r;
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return error_errno(err, -errno, "cannot accept %s", w->what);
	*ret_fd = fd;
	return 0;
}

int channel_connect(struct waiter *w, const char *path, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = -EBADF;
	struct sockaddr_un addr;
	int r;

	r = unix_address(path, &addr, err);
	if (r < 0)
		return r;
	for (;;) {
		closep(&fd);
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (fd < 0)
			return error_errno(err, -errno, "no socket");
		if (!connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
			break;
		/* EAGAIN: its queue is full. */
		if (errno != ENOENT && errno != ECONNREFUSED && errno != EAGAIN)
			return error_errno(err, -errno, "cannot connect to %s", path);
		r = wait_sleep(w, 2000, err);
		if (r < 0)
			return r;
	}
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int append_fds(struct scm_fds *to, struct scm_fds *from, struct error *err)
{
	if (to->n + from->n > SCM_RIGHTS_MAX)
		return error_set(err, -E2BIG, "the source passes more than %d fds", SCM_RIGHTS_MAX);
	memcpy(to->fd + to->n, from->fd, from->n * sizeof(int));
	to->n += from->n;
	from->n = 0;
	return 0;
}

int channel_receive_cpr(struct waiter *w, int source, struct cpr_state *ret_state,
			struct error *err)
{
	_cleanup_cpr_state_ struct cpr_state state = CPR_STATE_INIT;
	uint8_t buf[4096];
	int r;

	for (;;) {
		_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
		uint8_t *bytes;
		ssize_t n;

		r = wait_for(w, source, POLLIN, err);
		if (r < 0)
			return r;
		n = scm_recv(source, buf, sizeof(buf), &fds);
		if (n == -EAGAIN)
			continue;
		if (n < 0)
			return error_errno(err, (int)n, "cannot read the source's cpr state");
		if (n == 0)
			break;
		if (state.len + (size_t)n > CPR_STATE_MAX)
			return error_set(err, -E2BIG, "the source's cpr state has no end");
		r = append_fds(&state.fds, &fds, err);
		if (r < 0)
			return r;
		bytes = realloc(state.bytes, state.len + (size_t)n);
		if (!bytes)
			return -ENOMEM;
		memcpy(bytes + state.len, buf, (size_t)n);
		state.bytes = bytes;
		state.len += (size_t)n;
	}
	if (state.len < state.fds.n || !state.len)
		return error_set(err, -EBADMSG, "the source closed its cpr channel after %zu bytes",
				 state.len);
	*ret_state = state;
	state = (struct cpr_state)CPR_STATE_INIT;
	return 0;
}

/* Writes all of it, waiting where the socket is full. */
static int write_all(struct waiter *w, int fd, const uint8_t *p, size_t len, const int *fds,
		     size_t n_fds, struct error *err)
{
	while (len) {
		ssize_t n = scm_send(fd, p, len, fds, n_fds);
		int r;

		if (n == -EAGAIN) {
			r = wait_for(w, fd, POLLOUT, err);
			if (r < 0)
				return r;
			continue;
		}
		if (n == -EPIPE || n == -ECONNRESET) {
			error_set(err, (int)n, "the target refused %s", w->what);
			return error_hint(err, "its own words are in the log of the VM");
		}
		if (n < 0)
			return error_errno(err, (int)n, "the target does not take %s", w->what);
		p += n;
		len -= (size_t)n;
		n_fds = 0;
	}
	return 0;
}

int channel_send_cpr(struct waiter *w, int target, const struct cpr_state *state, struct error *err)
{
	const uint8_t *p = state->bytes;
	size_t left = state->len, sent = 0;
	int r;

	/*
	 * QEMU queues the fds in the order of their arrival and takes one at
	 * each marker byte of the stream, so they may come early.
	 */
	while (sent < state->fds.n) {
		size_t n = state->fds.n - sent;

		if (n > QEMU_FDS_PER_MESSAGE)
			n = QEMU_FDS_PER_MESSAGE;
		r = write_all(w, target, p, 1, state->fds.fd + sent, n, err);
		if (r < 0)
			return r;
		p++;
		left--;
		sent += n;
	}
	r = write_all(w, target, p, left, NULL, 0, err);
	if (r < 0)
		return r;
	if (shutdown(target, SHUT_WR) < 0)
		return error_errno(err, -errno, "the target's cpr channel");
	return 0;
}

int channel_wait_hup(struct waiter *w, int fd, struct error *err)
{
	for (;;) {
		int r = wait_for(w, fd, POLLIN, err);
		ssize_t n;
		char byte;

		if (r < 0)
			return r;
		n = recv(fd, &byte, 1, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return 0;
		r = wait_time_left(w, err);
		if (r < 0)
			return r;
	}
}

int channel_connect_main(struct waiter *w, const char *path, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = -EBADF;
	int room = STREAM_USUAL, r;

	r = channel_connect(w, path, &fd, err);
	if (r < 0)
		return r;
	/* So that the source need not wait for the target; without it, it does. */
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int spool_grow(struct spool *s, size_t size)
{
	void *map;

	if (ftruncate(s->fd, (off_t)size) < 0)
		return -errno;
	map = s->map ? mremap(s->map, s->size, size, MREMAP_MAYMOVE)
		     : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, s->fd,
			    0);
	if (map == MAP_FAILED)
		return -errno;
	s->map = map;
	s->size = size;
	return 0;
}

int spool_open(struct spool *s, struct error *err)
{
	int r;

	s->max = STREAM_MAX;
	r = device_state_make(&s->fd);
	if (r >= 0)
		r = spool_grow(s, STREAM_USUAL);
	return r < 0 ? error_errno(err, r, "no memory for the device state") : 0;
}

void spool_close(struct spool *s)
{
	if (s->map)
		(void)munmap(s->map, s->size);
	closep(&s->fd);
	*s = (struct spool)SPOOL_INIT;
}

int channel_relay_main(struct waiter *w, int source, int target, struct spool *spool,
		       uint64_t *ret_bytes, struct error *err)
{
	size_t total = 0;
	int r;

	for (;;) {
		ssize_t n;

		r = wait_time_left(w, err);
		if (r < 0)
			return r;
		if (total == spool->size) {
			if (spool->size >= spool->max)
				return error_set(err, -E2BIG,
						 "the source's device state has no end");
			r = spool_grow(spool, spool->size * 2);
			if (r < 0)
				return error_errno(err, r, "cannot keep the device state");
		}
		n = recv(source, spool->map + total, spool->size - total, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			r = wait_for(w, source, POLLIN, err);
			if (r < 0)
				return r;
			continue;
		}
		if (n < 0)
			return error_errno(err, -errno, "cannot read the source's device state");
		if (n == 0)
			break;
		r = write_all(w, target, spool->map + total, (size_t)n, NULL, 0, err);
		if (r < 0)
			return r;
		total += (size_t)n;
	}
	r = ftruncate(spool->fd, (off_t)total) < 0 ? -errno : device_state_complete(spool->fd);
	if (r < 0)
		return error_errno(err, r, "cannot keep the device state");
	*ret_bytes = total;
	return 0;
}

int channel_send_main(struct waiter *w, int target, int state, uint64_t *ret_bytes,
		      struct error *err)
{
	struct stat st;
	void *map;
	int r;

	if (fstat(state, &st) < 0)
		return error_errno(err, -errno, "cannot read the device state");
	if (st.st_size <= 0)
		return error_set(err, -ENODATA, "the device state is empty");
	map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, state, 0);
	if (map == MAP_FAILED)
		return error_errno(err, -errno, "cannot read the device state");
	r = write_all(w, target, map, (size_t)st.st_size, NULL, 0, err);
	(void)munmap(map, (size_t)st.st_size);
	if (r < 0)
		return r;
	if (shutdown(target, SHUT_WR) < 0)
		return error_errno(err, -errno, "the target's main channel");
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}
