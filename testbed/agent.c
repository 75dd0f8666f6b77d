/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The agent: runs the one command of testbed/run inside the emulated host.
 *
 * Started once, by systemd or by the busybox init. It reads the command's argument vector (strings ended by NUL)
 * from the file named by its first argument, runs it with /dev/null as input, and carries its output to two
 * virtio-serial ports through pipes (a port can be opened only once, so the command must not own it: with a pipe,
 * /dev/stderr works). The third port carries three kinds of lines to testbed/run:
 *
 *	started			the command is about to run
 *	exit STATUS		it ended, and everything it had written before is through the other ports
 *	failed SENTENCE		it could not be run at all
 *
 * Processes which the command left behind may hold the pipes open: what is in the pipes when the command ends is
 * still carried, then the agent does not wait for more. If the agent dies, testbed/run runs into its deadline.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int control_fd = -1;

static void tell(const char *format, const char *word, int number)
{
	char line[512];
	int n = snprintf(line, sizeof(line), format, word, number);

	if (n >= (int)sizeof(line))
		n = sizeof(line) - 1;
	if (write(control_fd, line, n) != n)
		exit(1);
}

static void fail(const char *what)
{
	tell("failed %s: errno %d\n", what, errno);
	exit(1);
}

/* The port's name stands in sysfs; there is no udev in the busybox system to make a link of it. */
static int open_port(const char *name)
{
	for (int i = 1; i < 8; i++) {
		char path[64], found[64] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/sys/class/virtio-ports/vport0p%d/name", i);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%63s", found) != 1)
			found[0] = 0;
		fclose(f);
		if (strcmp(found, name) != 0)
			continue;
		snprintf(path, sizeof(path), "/dev/vport0p%d", i);
		return open(path, O_WRONLY | O_CLOEXEC);
	}
	errno = ENOENT;
	return -1;
}

static char **read_argv(const char *path)
{
	static char text[1 << 20];
	static char *argv[1 << 14];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t n = 0, argc = 0;
	ssize_t r;

	if (fd < 0)
		fail("cannot open the command");
	while ((r = read(fd, text + n, sizeof(text) - n)) > 0)
		n += r;
	close(fd);
	for (size_t i = 0; i < n && argc < sizeof(argv) / sizeof(argv[0]) - 1; i += strlen(text + i) + 1)
		argv[argc++] = text + i;
	if (argc == 0)
		fail("the command is empty");
	return argv;
}

/* Carry what is there, at most one buffer. Returns the number of bytes, 0 at the end, -1 when there is nothing now. */
static ssize_t carry(int from, int to)
{
	char buffer[32768];
	ssize_t n = read(from, buffer, sizeof(buffer)), done = 0;

	while (done < n) {
		ssize_t w = write(to, buffer + done, n - done);

		if (w < 0 && errno != EINTR)
			fail("cannot write to a port");
		if (w > 0)
			done += w;
	}
	return n;
}

static _Noreturn void child(char **argv, int out, int err)
{
	int null = open("/dev/null", O_RDONLY);

	if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		_exit(126);
	close(null);
	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	setsid();
	execvp(argv[0], argv);
	dprintf(2, "testbed: cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* The write end closes when the child is gone, whoever else lives on. */
static int exit_pipe[2];
static void on_child(int signal_number)
{
	int saved = errno;
	ssize_t n = write(exit_pipe[1], "", 1);

	(void)signal_number;
	(void)n;
	errno = saved;
}

int main(int argc, char **argv)
{
	int out[2], err[2], ports[2], status;
	char **command;
	pid_t pid;

	control_fd = open_port("org.upgraded.control");
	if (control_fd < 0 || argc != 2)
		return 1;
	command = read_argv(argv[1]);
	ports[0] = open_port("org.upgraded.stdout");
	ports[1] = open_port("org.upgraded.stderr");
	if (ports[0] < 0 || ports[1] < 0)
		fail("cannot open the output ports");
	if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC) || pipe2(exit_pipe, O_CLOEXEC | O_NONBLOCK))
		fail("pipe");
	signal(SIGCHLD, on_child);

	tell("%s%.0d\n", "started", 0);
	pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0)
		child(command, out[1], err[1]);
	close(out[1]);
	close(err[1]);
	/* Only the agent's own ends become non-blocking: the two ends of a pipe are two open files. */
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);

	struct pollfd poll_fds[3] = {
		{ .fd = out[0], .events = POLLIN }, { .fd = err[0], .events = POLLIN }, { .fd = exit_pipe[0], .events = POLLIN },
	};
	for (;;) {
		char drop[64];

		if (poll(poll_fds, 3, -1) < 0) {
			if (errno == EINTR)
				continue;
			fail("poll");
		}
		for (int i = 0; i < 2; i++)
			if (poll_fds[i].revents && carry(poll_fds[i].fd, ports[i]) == 0)
				poll_fds[i].fd = -1;
		if (poll_fds[2].revents) {
			while (read(exit_pipe[0], drop, sizeof(drop)) > 0)
				;
			if (waitpid(pid, &status, WNOHANG) == pid)
				break;
		}
	}
	for (int i = 0; i < 2; i++)
		for (int n = 0; n < 64 && poll_fds[i].fd >= 0 && carry(poll_fds[i].fd, ports[i]) > 0; n++)
			;	/* at most a full pipe was in there: a left-over writer does not keep us here */
	tell("%s %d\n", "exit", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	return 0;
}
