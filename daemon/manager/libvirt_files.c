/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The files in which libvirt's QEMU driver remembers its domains. They are read at any
 * time, by the daemon to learn which domains there are and by a worker to see what is in
 * the way; they are written only while libvirt's daemon waits with its start (libvirt.c),
 * each by a rename, so that whoever dies leaves the old one or the new one.
 */
#include "manager/libvirt_files.h"

#include "cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define CONFIG_DIR "/etc/libvirt/qemu"

static char *path_of(const char *dir, const char *name, const char *suffix)
{
	char *path;

	/* libvirt has no such names; nothing of ours goes up a directory either. */
	if (!*name || strchr(name, '/'))
		return NULL;
	return asprintf(&path, "%s/%s%s", dir, name, suffix) < 0 ? NULL : path;
}

static int read_all(const char *path, char **ret_text, size_t *ret_len, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_free_ char *text = NULL;
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		return error_errno(err, -errno, "cannot open %s", path);
	text = malloc(LIBVIRT_STATUS_MAX + 1);
	if (!text)
		return -ENOMEM;
	while (len <= LIBVIRT_STATUS_MAX &&
	       (n = read(fd, text + len, LIBVIRT_STATUS_MAX + 1 - len)) != 0) {
		if (n < 0)
			return error_errno(err, -errno, "cannot read %s", path);
		len += (size_t)n;
	}
	*ret_text = TAKE_PTR(text);
	*ret_len = len;
	return 0;
}

/* @mode: of a file that was not there before. */
static int write_all(const char *path, const char *text, size_t len, mode_t mode, struct error *err)
{
	_cleanup_free_ char *fresh = NULL;
	_cleanup_close_ int fd = -EBADF;
	struct stat st;

	if (asprintf(&fresh, "%s.upgraded", path) < 0) {
		fresh = NULL;
		return -ENOMEM;
	}
	if (!lstat(path, &st))
		mode = st.st_mode & 07777;
	(void)unlink(fresh);
	fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "cannot make %s", fresh);
	if (write(fd, text, len) != (ssize_t)len || fchmod(fd, mode) < 0 || fdatasync(fd) < 0 ||
	    rename(fresh, path) < 0) {
		int r = errno ? -errno : -EIO;

		(void)unlink(fresh);
		return error_errno(err, r, "cannot write %s", path);
	}
	return 0;
}

pid_t libvirt_daemon_pid(void)
{
	_cleanup_close_ int fd = open(LIBVIRT_STATUS_DIR "/driver.pid", O_RDONLY | O_CLOEXEC);
	char text[16] = "";

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return 0;
	return atoi(text) > 0 ? atoi(text) : 0;
}

int libvirt_files_read(const char *name, struct libvirt_status **ret, struct error *err)
{
	_cleanup_free_ char *path = path_of(LIBVIRT_STATUS_DIR, name, ".xml"), *text = NULL;
	size_t len;
	int r;

	if (!path)
		return -ENOMEM;
	r = read_all(path, &text, &len, err);
	return r < 0 ? r : libvirt_status_parse(text, len, ret, err);
}

int libvirt_files_write(const struct libvirt_status *s, struct error *err)
{
	_cleanup_free_ char *path = path_of(LIBVIRT_STATUS_DIR, s->name, ".xml"), *text = NULL;
	_cleanup_free_ char *pidfile = path_of(LIBVIRT_STATUS_DIR, s->name, ".pid");
	char pid[16];
	size_t len;
	int r;

	if (!path || !pidfile)
		return -ENOMEM;
	r = libvirt_status_format(s, &text, &len);
	if (r < 0)
		return r;
	r = write_all(path, text, len, 0600, err);
	if (r < 0)
		return r;
	snprintf(pid, sizeof(pid), "%d", (int)s->pid);
	return write_all(pidfile, pid, strlen(pid), 0644, err);
}

int libvirt_files_set_emulator(const char *name, const char *emulator, struct error *err)
{
	_cleanup_free_ char *path = path_of(CONFIG_DIR, name, ".xml"), *text = NULL, *fresh = NULL;
	size_t len;
	int r;

	if (!path)
		return -ENOMEM;
	/* A transient domain has none. */
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return 0;
	r = read_all(path, &text, &len, err);
	if (r >= 0)
		r = libvirt_config_set_emulator(text, len, emulator, &fresh, &len, err);
	return r < 0 ? r : write_all(path, fresh, len, 0600, err);
}
