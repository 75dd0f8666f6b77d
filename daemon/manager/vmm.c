/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgraded-vmm NAME: the ExecStart= of vmm@NAME.service. Reads the command
 * line that `upgradectl run` left in runtime-dir/vms-argv/NAME (each argument
 * followed by a NUL) and executes it, so that QEMU itself is the unit's main
 * process.
 *
 * QEMU does not speak sd_notify. A child of the launcher, which dies with the
 * VM or after a minute, tells systemd READY=1 on its behalf when its monitor
 * answers. It does not need the daemon, so a unit that systemd restarts comes
 * up without one. It forks twice: QEMU must not find a child it does not know.
 *
 * A unit that systemd starts while its VM is being upgraded (runtime-dir/vms-held/NAME)
 * had both of its VMMs die. Then the guest may be in custody, and this waits for
 * the daemon to bring it back, in this cgroup and in this place, or to let it boot.
 * If this process dies, systemd starts another one, which waits as well.
 */
#include "cleanup.h"
#include "error.h"
#include "notify.h"
#include "process.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define ARGV_BYTES_MAX	  (1024 * 1024)
#define READY_TRIES	  600
#define READY_INTERVAL_MS 100
#define HELD_INTERVAL_MS  100

/* The vector points into *ret_data. */
static int read_argv(const char *path, char **ret_data, char ***ret_argv)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_free_ char *data = malloc(ARGV_BYTES_MAX);
	char **argv;
	size_t n = 0;
	ssize_t len;

	if (fd < 0)
		return -errno;
	if (!data)
		return -ENOMEM;
	len = read(fd, data, ARGV_BYTES_MAX);
	if (len < 0)
		return -errno;
	if (len == 0 || len == ARGV_BYTES_MAX || data[len - 1])
		return -EBADMSG;
	for (ssize_t i = 0; i < len; i++)
		n += !data[i];
	argv = calloc(n + 1, sizeof(*argv));
	if (!argv)
		return -ENOMEM;
	n = 0;
	for (char *s = data; s < data + len; s += strlen(s) + 1)
		argv[n++] = s;
	*ret_data = TAKE_PTR(data);
	*ret_argv = argv;
	return 0;
}

/* The monitor sends its greeting when QEMU's main loop runs. */
static bool monitor_answers(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char greeting[16];

	if (fd < 0 || strlen(path) >= sizeof(addr.sun_path))
		return false;
	strcpy(addr.sun_path, path);
	return connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 && poll(&p, 1, 5000) == 1 &&
	       read(fd, greeting, sizeof(greeting)) > 0;
}

static void announce(pid_t vmm, int pidfd, const char *qmp)
{
	struct pollfd dead = { .fd = pidfd, .events = POLLIN };

	for (int i = 0; i < READY_TRIES && !monitor_answers(qmp); i++)
		if (poll(&dead, 1, READY_INTERVAL_MS) != 0)
			return;
	/* A VM whose monitor is slow runs all the same; killing it helps nobody. */
	if (notify_as(vmm, "READY=1") < 0)
		fprintf(stderr, "upgraded-vmm: cannot tell systemd that %s answers: %m\n", qmp);
}

static int start_announcer(const char *qmp)
{
	pid_t vmm = getpid(), child;
	_cleanup_close_ int pidfd = pidfd_open(vmm, 0);

	if (pidfd < 0)
		return -errno;
	child = fork();
	if (child < 0)
		return -errno;
	if (child == 0) {
		if (fork() == 0)
			announce(vmm, pidfd, qmp);
		_exit(EXIT_SUCCESS);
	}
	return waitpid(child, NULL, 0) < 0 ? -errno : 0;
}

/* Says in vms-launcher/NAME who waits here. */
static int say_who(const char *path)
{
	_cleanup_free_ char *fresh = NULL;
	_cleanup_fclose_ FILE *f = NULL;
	uint64_t start_time;
	int r;

	r = process_start_time(getpid(), &start_time);
	if (r < 0)
		return r;
	if (asprintf(&fresh, "%s.new", path) < 0) {
		fresh = NULL;
		return -ENOMEM;
	}
	f = fopen(fresh, "we");
	if (!f || fprintf(f, "%d %" PRIu64 "\n", (int)getpid(), start_time) < 0 || fflush(f) ||
	    rename(fresh, path) < 0)
		return -errno;
	return 0;
}

/* Returns when nothing keeps the VM from booting; a daemon that is not there keeps it. */
static int wait_for_upgrade(const char *runtime, const char *name)
{
	_cleanup_free_ char *held = NULL, *who = NULL;
	int r;

	if (asprintf(&held, "%s/vms-held/%s", runtime, name) < 0 ||
	    asprintf(&who, "%s/vms-launcher/%s", runtime, name) < 0)
		return -ENOMEM;
	if (access(held, F_OK) < 0)
		return 0;
	r = say_who(who);
	if (r < 0)
		return r;
	/* It takes longer than a unit may take to start. */
	if (getenv("NOTIFY_SOCKET"))
		(void)notify_as(getpid(), "READY=1\nSTATUS=Waiting for upgraded to bring the guest back");
	while (access(held, F_OK) == 0)
		(void)poll(NULL, 0, HELD_INTERVAL_MS);
	(void)unlink(who);
	return 0;
}

int main(int argc, char **argv)
{
	_cleanup_free_ char *file = NULL, *dir = NULL, *qmp = NULL, *data = NULL;
	_cleanup_free_ char **vmm_argv = NULL;
	const char *runtime = argc > 2 ? argv[2] : "/run/upgraded";
	int r;

	if (argc < 2 || argc > 3 || strchr(argv[1], '/')) {
		fprintf(stderr, "upgraded-vmm is started by vmm@NAME.service; see upgradectl(1)\n");
		return 2;
	}
	if (asprintf(&file, "%s/vms-argv/%s", runtime, argv[1]) < 0 ||
	    asprintf(&dir, "%s/vmm/%s", runtime, argv[1]) < 0 ||
	    asprintf(&qmp, "%s/qmp.sock", dir) < 0)
		return EXIT_FAILURE;
	r = read_argv(file, &data, &vmm_argv);
	if (r < 0) {
		fprintf(stderr,
			"upgraded-vmm: no command line for %s in %s: %s\n"
			"upgraded-vmm: start it with: upgradectl run %s -- QEMU ARGS\n",
			argv[1], file, strerror(-r), argv[1]);
		return EXIT_FAILURE;
	}
	r = wait_for_upgrade(runtime, argv[1]);
	if (r < 0) {
		fprintf(stderr, "upgraded-vmm: %s is being upgraded, and it cannot be waited for: %s\n",
			argv[1], strerror(-r));
		return EXIT_FAILURE;
	}
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		fprintf(stderr, "upgraded-vmm: cannot make %s: %m\n", dir);
	if (getenv("NOTIFY_SOCKET"))
		r = start_announcer(qmp);
	if (r < 0)
		fprintf(stderr, "upgraded-vmm: systemd will not be told: %s\n", strerror(-r));
	/* QEMU is not to speak for the unit, nor its helpers. */
	unsetenv("NOTIFY_SOCKET");
	execv(vmm_argv[0], vmm_argv);
	fprintf(stderr, "upgraded-vmm: cannot execute %s: %m\n", vmm_argv[0]);
	return EXIT_FAILURE;
}
