/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgraded: the daemon. Makes the one context, gets its sockets (from systemd,
 * or binds them itself when it runs in the foreground), takes up what an
 * earlier daemon left unfinished, and runs the event loop until SIGTERM.
 *
 * It may be stopped and started at any moment. What must survive is outside of
 * it: the registry's files, the journal, custody in systemd's fd store, the VMs; a
 * running upgrade goes on in its worker (before COMMIT the worker undoes it when
 * the daemon is gone, after it the worker finishes), and the next daemon takes it
 * up from the journal and custody.
 */
#include "check.h"
#include "context.h"
#include "control.h"
#include "fd_store.h"
#include "history.h"
#include "journal.h"
#include "log.h"
#include "manager/manager.h"
#include "manager/libvirt.h"
#include "manager/systemd.h"
#include "native.h"
#include "polkit.h"
#include "recover.h"
#include "registry.h"
#include "runtime_lock.h"
#include "schedule.h"
#include "server.h"
#include "settings.h"
#include "upgrade.h"
#include "version.h"

#include <argp.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#ifndef WORKER_PATH
#define WORKER_PATH "/usr/libexec/upgraded/upgraded-worker"
#endif

const char *argp_program_version = "upgraded " UPGRADED_VERSION;

enum { OPT_RUNTIME_DIR = 256, OPT_STATE_DIR, OPT_WORKER, OPT_GROUP, OPT_CONFIG_ROOT, OPT_MAX_RUNNING };

static const struct argp_option option_table[] = {
	{ "runtime-dir", OPT_RUNTIME_DIR, "DIR", 0,
	  "Sockets, known VMs and the journal ($RUNTIME_DIRECTORY, or /run/upgraded)", 0 },
	{ "state-dir", OPT_STATE_DIR, "DIR", 0,
	  "The history of upgrades ($STATE_DIRECTORY, or /var/lib/upgraded)", 0 },
	{ "worker", OPT_WORKER, "PATH", 0, "The worker to start (" WORKER_PATH ")", 0 },
	{ "group", OPT_GROUP, "NAME", 0,
	  "Who may use control.sock and vmm.sock beside root, when systemd does not make them", 0 },
	{ "config-root", OPT_CONFIG_ROOT, "DIR", 0,
	  "Read upgraded.conf(5) below DIR instead of /", 0 },
	{ "max-running", OPT_MAX_RUNNING, "N", 0,
	  "Upgrades and checks at once, in place of MaxRunning=", 0 },
	{ 0 },
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	char *end;

	switch (key) {
	case OPT_RUNTIME_DIR:
		o->runtime_dir = arg;
		return 0;
	case OPT_STATE_DIR:
		o->state_dir = arg;
		return 0;
	case OPT_WORKER:
		o->worker = arg;
		return 0;
	case OPT_GROUP:
		o->group = arg;
		return 0;
	case OPT_CONFIG_ROOT:
		o->config_root = arg;
		return 0;
	case OPT_MAX_RUNNING:
		o->max_running = strtoul(arg, &end, 10);
		if (*end || !o->max_running || o->max_running > 1000)
			argp_error(state, "--max-running takes a number from 1 to 1000, not %s",
				   arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static int absolute(const char *what, const char *path, struct error *err)
{
	return path[0] == '/' ? 0
			      : error_set(err, -EINVAL, "%s %s is no absolute path", what, path);
}

static int make_dir(const char *path, mode_t mode, struct error *err)
{
	if (mkdir(path, mode) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "cannot make the directory %s", path);
	return 0;
}

static int make_dirs(const struct options *o, struct error *err)
{
	_cleanup_free_ char *work = NULL, *vmm = NULL;
	int r;

	r = absolute("--runtime-dir", o->runtime_dir, err);
	if (r >= 0)
		r = absolute("--state-dir", o->state_dir, err);
	if (r >= 0)
		r = absolute("--worker", o->worker, err);
	if (r < 0)
		return r;
	if (asprintf(&work, "%s/work", o->runtime_dir) < 0 ||
	    asprintf(&vmm, "%s/vmm", o->runtime_dir) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	/* A QEMU of another user must get through to its own directory below. */
	r = make_dir(o->runtime_dir, 0755, err);
	if (r >= 0)
		r = make_dir(work, 0711, err);
	if (r >= 0)
		r = make_dir(vmm, 0711, err);
	/* Only the history is there, which says so itself if it is not. */
	(void)make_dir(o->state_dir, 0750, NULL);
	return r;
}

/* ---- sockets ---- */

static int bind_socket(const struct options *o, const char *name, int *ret_fd, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = -EBADF, probe = -EBADF;
	mode_t mask;
	int n, r;

	n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s.sock", o->runtime_dir, name);
	if (n < 0 || (size_t)n >= sizeof(addr.sun_path))
		return error_set(err, -ENAMETOOLONG, "%s is too long for a socket in it",
				 o->runtime_dir);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || probe < 0)
		return error_errno(err, -errno, "no socket");
	if (connect(probe, (struct sockaddr *)&addr, sizeof(addr)) == 0) {
		error_set(err, -EADDRINUSE, "another upgraded listens on %s", addr.sun_path);
		error_hint(err, "stop it, or use another --runtime-dir");
		return -EADDRINUSE;
	}
	unlink(addr.sun_path);
	mask = umask(0177);
	r = bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ? -errno : 0;
	umask(mask);
	if (r < 0 || listen(fd, SOMAXCONN) < 0)
		return error_errno(err, r < 0 ? r : -errno, "cannot listen on %s", addr.sun_path);
	if (o->group) {
		struct group *group = getgrnam(o->group);

		if (!group)
			return error_set(err, -EINVAL, "there is no group %s", o->group);
		if (chown(addr.sun_path, (uid_t)-1, group->gr_gid) < 0 ||
		    chmod(addr.sun_path, 0660) < 0)
			return error_errno(err, -errno, "cannot give %s to group %s", addr.sun_path,
					   o->group);
	}
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static const char *const socket_names[] = {
	[SOCKET_CONTROL] = "control",
	[SOCKET_VMM] = "vmm",
};

static int socket_by_name(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(socket_names); i++)
		if (!strcmp(socket_names[i], name))
			return (int)i;
	return -ENOENT;
}

/* What systemd passed; *ret_have says which of our sockets are among it. */
static int take_passed_sockets(struct context *ctx, bool *ret_have, struct error *err)
{
	_cleanup_strv_ char **names = NULL;
	int n, r = 0;

	n = sd_listen_fds_with_names(1, &names);
	if (n < 0)
		return error_errno(err, n, "cannot take the sockets from systemd");
	for (int i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + i, which = socket_by_name(names[i]);

		if (fd_store_inherit(ctx->fd_store, names[i], fd) >= 0)
			continue;
		/* A newer or older unit file may pass what this version does not know. */
		if (which < 0 || ret_have[which] || r < 0 ||
		    sd_is_socket(fd, AF_UNIX, SOCK_SEQPACKET, 1) <= 0) {
			log_line(LOG_WARNING, "fd %d, named %s, is none of ours, closed", fd,
				 names[i]);
			close(fd);
			continue;
		}
		(void)fcntl(fd, F_SETFL, O_NONBLOCK);
		r = server_listen(ctx->server, fd, (enum server_socket)which, err);
		ret_have[which] = r >= 0;
	}
	return r;
}

static int listen_all(struct context *ctx, struct error *err)
{
	bool have[ARRAY_SIZE(socket_names)] = { 0 };
	int fd = -EBADF, r;

	r = take_passed_sockets(ctx, have, err);
	/* With some of them passed, systemd decides which there are. */
	for (size_t i = 0; i < ARRAY_SIZE(have); i++)
		if (have[i])
			return r;
	for (size_t i = 0; i < ARRAY_SIZE(socket_names) && r >= 0; i++) {
		r = bind_socket(&ctx->options, socket_names[i], &fd, err);
		if (r >= 0)
			r = server_listen(ctx->server, fd, (enum server_socket)i, err);
	}
	return r;
}

/* ---- the loop ---- */

static void on_vm_gone(struct vm *vm, void *userdata)
{
	struct context *ctx = userdata;

	/* During an upgrade its worker and its report say what it means. */
	if (vm->upgrade)
		return;
	log_vm(LOG_NOTICE, vm->pb->name, 0, "its process %d has ended", vm->pb->process->pid);
	manager_of(vm)->gone(ctx, vm);
}

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
	struct context *ctx = userdata;

	sd_notify(0, "STOPPING=1");
	log_line(LOG_INFO, "stops%s",
		 ctx->upgrades ? "; the workers of running upgrades go on" : "");
	server_stop_listening(ctx->server);
	upgrade_hear_out_all(ctx);
	return sd_event_exit(ctx->event, 0);
}

static int on_reload(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
	struct context *ctx = userdata;

	if (settings_load(ctx) < 0)
		log_line(LOG_ERR, "the configuration is as it was: out of memory");
	schedule(ctx);
	return 0;
}

/* Custody may need many fds; poll and epoll have no limit that matters. */
static void raise_fd_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

static void on_client_closed(uint64_t client, void *userdata)
{
	polkit_closed(userdata, client);
	libvirt_closed(userdata, client);
	native_closed(client, userdata);
}

static int open_all(struct context *ctx, struct error *err)
{
	_cleanup_free_ char *vms = NULL;
	uint64_t last_id = 0;
	int r;

	r = make_dirs(&ctx->options, err);
	if (r >= 0)
		r = runtime_lock(ctx->options.runtime_dir, &ctx->lock, err);
	if (r < 0)
		return r;
	if (asprintf(&vms, "%s/vms", ctx->options.runtime_dir) < 0) {
		vms = NULL;
		return error_set(err, -ENOMEM, "out of memory");
	}
	metrics_init(&ctx->metrics);
	r = settings_load(ctx);
	if (r >= 0)
		r = fd_store_new(ctx->event, &ctx->fd_store);
	if (r < 0)
		return error_set(err, r, "out of memory");
	r = journal_open(ctx->options.runtime_dir, &ctx->journal, err);
	if (r >= 0)
		r = history_open(ctx->options.state_dir, HISTORY_ROTATE_BYTES, &ctx->history,
				 &last_id, err);
	ctx->next_id = last_id + 1;
	if (r >= 0)
		r = registry_open(ctx->event, vms, on_vm_gone, ctx, &ctx->registry, err);
	if (r >= 0)
		r = systemd_new(ctx, &ctx->systemd, err);
	if (r >= 0 && libvirt_new(ctx, &ctx->libvirt) < 0)
		r = error_set(err, -ENOMEM, "out of memory");
	if (r >= 0)
		r = native_new(&ctx->native, err);
	if (r >= 0 && polkit_new(&ctx->polkit) < 0)
		r = error_set(err, -ENOMEM, "out of memory");
	if (r >= 0)
		r = server_new(ctx->event, control_request, polkit_ask, on_client_closed, ctx,
			       &ctx->server, err);
	return r;
}

static int run(struct context *ctx, struct error *err)
{
	sigset_t mask;
	int r;

	sigemptyset(&mask);
	sigaddset(&mask, SIGTERM);
	sigaddset(&mask, SIGINT);
	sigaddset(&mask, SIGHUP);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	signal(SIGPIPE, SIG_IGN);
	raise_fd_limit();

	r = sd_event_new(&ctx->event);
	if (r >= 0)
		r = sd_event_add_signal(ctx->event, NULL, SIGTERM, on_signal, ctx);
	if (r >= 0)
		r = sd_event_add_signal(ctx->event, NULL, SIGINT, on_signal, ctx);
	if (r >= 0)
		r = sd_event_add_signal(ctx->event, NULL, SIGHUP, on_reload, ctx);
	if (r >= 0)
		r = sd_event_set_watchdog(ctx->event, 1);
	if (r < 0)
		return error_errno(err, r, "no event loop");
	r = open_all(ctx, err);
	if (r < 0)
		return r;
	/* The sockets first: one of a version that takes no lock must be left its upgrades. */
	r = listen_all(ctx, err);
	if (r >= 0)
		r = recover_all(ctx, err);
	if (r < 0)
		return r;
	sd_notify(0, "READY=1\nSTATUS=Ready");
	log_line(LOG_INFO, "upgraded " UPGRADED_VERSION " is ready, runtime directory %s",
		 ctx->options.runtime_dir);
	r = sd_event_loop(ctx->event);
	return r < 0 ? error_errno(err, r, "the event loop failed") : 0;
}

static void context_clear(struct context *ctx)
{
	upgrade_free_all(ctx);
	check_free_all(ctx);
	systemd_freep(&ctx->systemd);
	server_freep(&ctx->server);
	polkit_freep(&ctx->polkit);
	native_freep(&ctx->native);
	libvirt_freep(&ctx->libvirt);
	registry_freep(&ctx->registry);
	history_freep(&ctx->history);
	journal_freep(&ctx->journal);
	fd_store_freep(&ctx->fd_store);
	digests_clear(&ctx->digests);
	settings_clear(ctx);
	sd_event_unref(ctx->event);
	closep(&ctx->lock);
}

int main(int argc, char **argv)
{
	static const struct argp argp = {
		.options = option_table,
		.parser = parse_option,
		.doc = "Replaces the VMM process under running VMs of this host. Started by "
		       "systemd; "
		       "operators use upgradectl(1).",
	};
	struct context ctx = {
		.options = {
			.runtime_dir = getenv("RUNTIME_DIRECTORY") ?: "/run/upgraded",
			.state_dir = getenv("STATE_DIRECTORY") ?: "/var/lib/upgraded",
			.worker = WORKER_PATH,
			.config_root = "",
		},
		.lock = -EBADF,
	};
	_cleanup_error_ struct error err = ERROR_INIT;
	int r;

	r = argp_parse(&argp, argc, argv, 0, NULL, &ctx.options);
	if (r)
		return EXIT_FAILURE;
	r = run(&ctx, &err);
	if (r < 0)
		log_error(LOG_ERR, NULL, 0, &err, "cannot go on");
	context_clear(&ctx);
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
