/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the first process of a guest has to do: mount the kernel's file systems, get a console, load
 * modules, read the command line, and turn the machine off.
 *
 * Called by main(), and only when it is PID 1. It owns nothing. If PID 1 died here the kernel would
 * panic, so nothing in it is fatal: a part that misses what was not mounted says so in its report.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "load.h"
#include "now.h"

static void mount_one(const char *type, const char *where)
{
	mkdir(where, 0755);
	if (mount(type, where, type, MS_NOSUID | MS_NOEXEC, NULL) < 0 && errno != EBUSY)
		fprintf(stderr, "load: mounting %s: %s\n", where, strerror(errno));
}

void boot_mount(void)
{
	int fd;

	mount_one("devtmpfs", "/dev");
	/* The kernel could not open a console for us before there was a /dev. */
	fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd >= 0) {
		for (int i = 0; i <= 2; i++)
			dup2(fd, i);
		if (fd > 2)
			close(fd);
	}
	mount_one("proc", "/proc");
	mount_one("sysfs", "/sys");
}

static int module_file(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

void boot_modules(struct load *l)
{
	struct dirent **files;
	int n = scandir("/modules", &files, module_file, alphasort);

	for (int i = 0; i < n; i++) {
		char path[300];
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", files[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			load_error(l, ERROR_SETUP, "loading %s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		free(files[i]);
	}
	if (n >= 0)
		free(files);
}

int boot_cmdline(char *buf, unsigned size)
{
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n < 0)
		return -errno;
	buf[n] = 0;
	return 0;
}

/* Off by ACPI; where there is none, a reset, which ends a QEMU that was started with -no-reboot. */
void boot_end(void)
{
	sync();
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	for (;;)
		sleep_ns(NSEC_PER_SEC);
}
