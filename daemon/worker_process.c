/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One upgraded-worker, seen from the daemon: spawning it, the socket to it,
 * noticing its end, killing it when it hangs. upgrade_worker.c and check.c say what
 * its messages mean.
 *
 * The worker gets fd 3, its end of a SOCK_SEQPACKET pair, and no other fd
 * beside stdin (/dev/null), stdout and stderr; its first packet is WorkerStart
 * with the pidfds. Owns the socket, the pidfd and the event sources.
 *
 * If the daemon dies, the worker sees the end of the socket; before COMMIT it
 * undoes the upgrade by itself, after it, it finishes. If the worker dies, all
 * that it had sent is delivered before ended() is called.
 */
#include "worker_process.h"

#include "log.h"
#include "oneshot.h"
#include "work_dir.h"
#include "worker/deadlines.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#define WORKER_SOCKET_FD 3
#define HELD_PER_PACKET	 SCM_RIGHTS_MAX
#define MARGIN_US	 (10 * 1000000ULL)

extern char **environ;

struct worker_process {
	struct worker_order order; /* but for what it borrows */
	char *vm;
	uint64_t upgrade_id;
	pid_t pid;
	int sock;
	int pidfd;
	sd_event *event;
	sd_event_source *io;
	sd_event_source *child;
	sd_event_source *silence;
	sd_event_source *stuck;
	bool last_words; /* silence now means "should have ended" */
};

uint64_t worker_silence_us(const WorkerStart *start, bool last_resort)
{
	uint64_t phase = start->phase_timeout_us ?: DEFAULT_PHASE_LIMIT_US;
	uint64_t blackout = start->max_blackout_us ?: DEFAULT_BLACKOUT_LIMIT_US;
	/* Examining and preparing, with not a word in between; or the freeze. */
	uint64_t longest = 2 * phase > blackout ? 2 * phase : blackout;

	/* A target from custody is started before it can be given up. */
	if (last_resort)
		longest = (phase > REBUILD_LEAST_US ? phase : REBUILD_LEAST_US) + LAST_RESORT_US +
			  LAST_RESORT_MORE_US;
	return longest + MARGIN_US;
}

static void kill_worker(struct worker_process *w, const char *why)
{
	log_vm(LOG_ERR, w->vm, w->upgrade_id, "worker %d %s, killed", (int)w->pid, why);
	if (pidfd_send_signal(w->pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
		log_line(LOG_ERR, "cannot kill worker %d: %m", (int)w->pid);
}

static void expect_word(struct worker_process *w)
{
	uint64_t us = w->order.ops->stuck_us ? w->order.ops->stuck_us(w->order.userdata)
					     : UINT64_MAX;

	if (us == UINT64_MAX || w->last_words)
		(void)sd_event_source_set_enabled(w->stuck, SD_EVENT_OFF);
	else
		oneshot_arm(w->stuck, us);
}

/* 1: delivered one; 0: there is none now; negative: nothing will come any more. */
static int deliver(struct worker_process *w)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = NULL;
	int r;

	r = wire_recv(w->sock, &env, &fds);
	if (r == -EAGAIN)
		return 0;
	if (r == -ENOTCONN)
		return r;
	if (r < 0) {
		kill_worker(w, "sent what cannot be understood");
		return r;
	}
	if (env->body_case == BODY(WORKER_WAITS)) {
		expect_word(w);
		return 1;
	}
	r = w->order.ops->message(env, &fds, w->order.userdata);
	if (r < 0) {
		kill_worker(w, "broke the contract");
		return r;
	}
	if (!w->last_words)
		oneshot_arm(w->silence, w->order.ops->silence_us(w->order.userdata));
	expect_word(w);
	return 1;
}

static int on_readable(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct worker_process *w = userdata;

	if (deliver(w) < 0)
		w->io = sd_event_source_disable_unref(w->io);
	return 0;
}

/* All that it has sent; false: nothing. */
static bool deliver_all(struct worker_process *w)
{
	bool heard = false;

	while (w->io && deliver(w) > 0)
		heard = true;
	return heard;
}

static int on_child(sd_event_source *s, const siginfo_t *si, void *userdata)
{
	struct worker_process *w = userdata;
	char how[64];

	deliver_all(w);
	snprintf(how, sizeof(how),
		 si->si_code == CLD_EXITED ? "ended with status %d" : "was killed by signal %d",
		 si->si_status);
	w->order.ops->ended(how, w->order.userdata);
	return 0;
}

static int on_stuck(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct worker_process *w = userdata;

	/* What came while this process could not look, as with a slow disk, is no silence. */
	if (!deliver_all(w))
		kill_worker(w, "hangs while the guest stands still");
	return 0;
}

static int on_silence(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct worker_process *w = userdata;

	kill_worker(w, w->last_words ? "does not end" : "has been silent for too long");
	return 0;
}

/* The daemon's environment but for what systemd meant for the daemon alone. */
static char **worker_environment(void)
{
	static const char *const drop[] = { "NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_", "FDSTORE=",
					    "RUNTIME_DIRECTORY=", "STATE_DIRECTORY=" };
	size_t n = 0, k = 0;
	char **env;

	while (environ[n])
		n++;
	env = calloc(n + 1, sizeof(*env));
	for (size_t i = 0; env && i < n; i++) {
		bool keep = true;

		for (size_t d = 0; d < ARRAY_SIZE(drop); d++)
			keep = keep && strncmp(environ[i], drop[d], strlen(drop[d])) != 0;
		if (keep)
			env[k++] = environ[i];
	}
	return env;
}

static int spawn(const char *program, int sock, pid_t *ret_pid)
{
	char *argv[] = { (char *)program, NULL };
	_cleanup_free_ char **env = worker_environment();
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int r;

	if (!env)
		return -ENOMEM;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attr);
	r = posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	/* dup2 of an fd to itself takes O_CLOEXEC off in a file action. */
	r = r ?: posix_spawn_file_actions_adddup2(&files, sock, WORKER_SOCKET_FD);
	r = r ?: posix_spawn_file_actions_addclosefrom_np(&files, WORKER_SOCKET_FD + 1);
	r = r ?: posix_spawnattr_setsigmask(&attr, &none);
	r = r ?: posix_spawnattr_setsigdefault(&attr, &all);
	/* A ^C in the foreground is for the daemon; the worker then sees it go. */
	r = r ?: posix_spawnattr_setpgroup(&attr, 0);
	r = r
		    ?: posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK |
							       POSIX_SPAWN_SETSIGDEF |
							       POSIX_SPAWN_SETPGROUP);
	r = r ?: posix_spawn(ret_pid, program, &files, &attr, argv, env);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attr);
	return -r;
}

/* From the moment it has its order a daemon that comes after us must know of it. */
static int send_start(struct worker_process *w, const struct worker_order *order)
{
	int fds[] = { order->source_pidfd, order->target_pidfd };
	Envelope env = ENVELOPE_INIT;
	int r;

	r = order->noted ? work_dir_write_worker(order->start->work_dir, w->pid) : 0;
	if (r < 0)
		log_vm(LOG_WARNING, w->vm, w->upgrade_id,
		       "the worker could not be noted for a restart: %s", strerror(-r));
	env.id = 1;
	env.body_case = BODY(WORKER_START);
	env.worker_start = order->start;
	return wire_send(w->sock, &env, fds, fds[0] < 0 ? 0 : fds[1] < 0 ? 1 : 2);
}

static int watch(struct worker_process *w)
{
	int r;

	r = sd_event_add_io(w->event, &w->io, w->sock, EPOLLIN, on_readable, w);
	if (r >= 0)
		r = sd_event_add_child_pidfd(w->event, &w->child, w->pidfd, WEXITED, on_child, w);
	/* After the socket, so that its last words are read first. */
	if (r >= 0)
		r = sd_event_source_set_priority(w->child, SD_EVENT_PRIORITY_NORMAL + 10);
	if (r >= 0)
		r = sd_event_add_time_relative(w->event, &w->silence, CLOCK_MONOTONIC,
					       w->order.ops->silence_us(w->order.userdata), 0,
					       on_silence, w);
	if (r >= 0)
		r = sd_event_add_time(w->event, &w->stuck, CLOCK_MONOTONIC, UINT64_MAX, 0, on_stuck,
				      w);
	if (r >= 0)
		expect_word(w);
	return r;
}

int worker_process_start(sd_event *event, const struct worker_order *order,
			 struct worker_process **ret_worker, struct error *err)
{
	_cleanup_(worker_process_freep) struct worker_process *w = calloc(1, sizeof(*w));
	_cleanup_close_ int theirs = -EBADF;
	int pair[2], r;

	if (!w)
		return error_set(err, -ENOMEM, "out of memory");
	w->order = *order;
	w->order.start = NULL;
	w->vm = strdup(order->start->vm->name);
	w->upgrade_id = order->start->upgrade_id;
	w->event = event;
	w->sock = w->pidfd = -EBADF;
	if (!w->vm)
		return error_set(err, -ENOMEM, "out of memory");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_errno(err, -errno, "no socket for a worker");
	w->sock = pair[0];
	theirs = pair[1];
	if (fcntl(w->sock, F_SETFL, O_NONBLOCK) < 0)
		return error_errno(err, -errno, "no socket for a worker");
	r = spawn(order->program, theirs, &w->pid);
	if (r < 0)
		return error_errno(err, r, "cannot start the worker %s", order->program);
	w->pidfd = pidfd_open(w->pid, 0);
	r = w->pidfd < 0 ? -errno : watch(w);
	if (r >= 0)
		r = send_start(w, order);
	if (r < 0) {
		/* It has no order yet, so nothing was begun. */
		kill(w->pid, SIGKILL);
		waitpid(w->pid, NULL, 0);
		return error_errno(err, r, "cannot give the worker its order");
	}
	*ret_worker = TAKE_PTR(w);
	return 0;
}

static int send_fds(struct worker_process *w, Envelope *env, const int *fds, size_t n)
{
	int r = wire_send(w->sock, env, fds, n);

	if (r == -EAGAIN)
		kill_worker(w, "does not read its socket");
	/* One that has ended broke no contract, and its last words are still to be read. */
	return r == -EPIPE || r == -ECONNRESET ? 0 : r;
}

int worker_process_send(struct worker_process *w, Envelope *env)
{
	return send_fds(w, env, NULL, 0);
}

int worker_process_lend(struct worker_process *w, uint64_t id, int fd)
{
	Upgraded__V1__VmmLent lent = UPGRADED__V1__VMM_LENT__INIT;
	Envelope env = ENVELOPE_INIT;

	env.id = id;
	env.body_case = BODY(VMM_LENT);
	env.vmm_lent = &lent;
	return send_fds(w, &env, &fd, 1);
}

int worker_process_ack(struct worker_process *w, uint64_t id)
{
	Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;
	Envelope env = ENVELOPE_INIT;

	env.id = id;
	env.body_case = BODY(ACK);
	env.ack = &ack;
	return worker_process_send(w, &env);
}

int worker_process_refuse(struct worker_process *w, uint64_t id, const struct error *err)
{
	Upgraded__V1__Error msg;
	Envelope env = ENVELOPE_INIT;

	wire_error(&msg, ERROR_CODE(INTERNAL), err);
	env.id = id;
	env.body_case = BODY(ERROR);
	env.error = &msg;
	return worker_process_send(w, &env);
}

int worker_process_give(struct worker_process *w, int whole, const int *fds, size_t n)
{
	Upgraded__V1__CustodyHeld msg = UPGRADED__V1__CUSTODY_HELD__INIT;
	Envelope env = ENVELOPE_INIT;
	int packet[HELD_PER_PACKET] = { whole };
	size_t sent = 0, now, first = 1;
	int r;

	env.id = 3;
	env.body_case = BODY(CUSTODY_HELD);
	env.custody_held = &msg;
	do {
		now = n - sent < HELD_PER_PACKET - first ? n - sent : HELD_PER_PACKET - first;
		if (now)
			memcpy(packet + first, fds + sent, now * sizeof(*fds));
		sent += now;
		env.batches_left = (uint32_t)((n - sent + HELD_PER_PACKET - 1) / HELD_PER_PACKET);
		r = send_fds(w, &env, packet, first + now);
		first = 0;
	} while (r >= 0 && sent < n);
	return r;
}

int worker_process_abort(struct worker_process *w)
{
	Upgraded__V1__WorkerAbort msg = UPGRADED__V1__WORKER_ABORT__INIT;
	Envelope env = ENVELOPE_INIT;

	env.id = 2;
	env.body_case = BODY(WORKER_ABORT);
	env.worker_abort = &msg;
	return worker_process_send(w, &env);
}

void worker_process_expect_end(struct worker_process *w, uint64_t us)
{
	w->last_words = true;
	oneshot_arm(w->silence, us);
}

void worker_process_hear_out(struct worker_process *w)
{
	(void)shutdown(w->sock, SHUT_RD);
	deliver_all(w);
}

void worker_process_freep(struct worker_process **w)
{
	if (!*w)
		return;
	(*w)->io = sd_event_source_disable_unref((*w)->io);
	(*w)->child = sd_event_source_disable_unref((*w)->child);
	(*w)->silence = sd_event_source_disable_unref((*w)->silence);
	(*w)->stuck = sd_event_source_disable_unref((*w)->stuck);
	closep(&(*w)->sock);
	closep(&(*w)->pidfd);
	free((*w)->vm);
	free(*w);
	*w = NULL;
}
