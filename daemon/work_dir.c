/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The directory of one worker's run, runtime-dir/work/ID: the sockets between
 * source, worker and target, the target's log. Made by the daemon before the
 * worker starts (check.c, upgrade.c) and removed when the run has ended. It
 * belongs to the user that the source runs as, so that a QEMU that is not root
 * can connect; nobody else gets in.
 *
 * Beside each directory stands ID.worker, the worker's pid and start time: a
 * daemon that was restarted waits for that worker, which undoes or finishes by
 * itself, before it starts another one on the same monitors. It is outside the
 * directory, where the source cannot write.
 */
#include "work_dir.h"

#include "log.h"
#include "vmm_process.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

/* Far more directories than any honest source leaves. */
#define DIRS_MAX 100000

char *work_dir_path(const char *runtime_dir, const char *name)
{
	char *path;

	return asprintf(&path, "%s/work/%s", runtime_dir, name) < 0 ? NULL : path;
}

int work_dir_make(const char *runtime_dir, const char *name, pid_t pid, char **ret_path,
		  struct error *err)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	_cleanup_free_ char *path = work_dir_path(runtime_dir, name);
	int r;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	r = process_read(pid, &facts, err);
	if (r < 0)
		return r;
	if (mkdir(path, 0700) < 0) {
		if (errno != EEXIST)
			return error_errno(err, -errno, "cannot make %s", path);
		/* Of a daemon that was killed; ids are not used twice otherwise. */
		work_dir_remove(path);
		if (mkdir(path, 0700) < 0)
			return error_errno(err, -errno, "cannot make %s", path);
	}
	if (facts.uid != geteuid() && lchown(path, facts.uid, facts.gid) < 0) {
		r = error_errno(err, -errno, "cannot give %s to uid %u", path, facts.uid);
		rmdir(path);
		return r;
	}
	*ret_path = TAKE_PTR(path);
	return 0;
}

static char *worker_file(const char *path)
{
	char *file;

	return asprintf(&file, "%s.worker", path) < 0 ? NULL : file;
}

static DIR *open_dir_at(int parent, const char *name)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);

	if (!dir)
		closep(&fd);
	return dir;
}

/* Removes the files of @dir. Its directories move into @top, where they are found again. */
static void empty(DIR *dir, int top, unsigned *moves)
{
	struct dirent *entry;
	char name[32];

	while ((entry = readdir(dir))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
		    !unlinkat(dirfd(dir), entry->d_name, 0) || errno != EISDIR)
			continue;
		snprintf(name, sizeof(name), ".removed-%u", ++*moves);
		(void)renameat(dirfd(dir), entry->d_name, top, name);
	}
}

/*
 * The source's user may put directories into it, as deep as they like, and links to
 * anywhere. So no link is followed, and nothing recurses: a directory in it is emptied
 * of its own into the top one until there are none. Who makes them faster than that
 * wins, for as long as they go on.
 */
void work_dir_remove(const char *path)
{
	_cleanup_free_ char *file = worker_file(path);
	_cleanup_closedir_ DIR *top = NULL;
	unsigned moves = 0, dirs = 0;
	struct dirent *entry;

	if (file)
		unlink(file);
	top = open_dir_at(AT_FDCWD, path);
	if (!top)
		return;
	while (dirs < DIRS_MAX && (entry = readdir(top))) {
		_cleanup_closedir_ DIR *sub = NULL;

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
		    !unlinkat(dirfd(top), entry->d_name, 0) || errno != EISDIR)
			continue;
		dirs++;
		sub = open_dir_at(dirfd(top), entry->d_name);
		if (sub)
			empty(sub, dirfd(top), &moves);
		(void)unlinkat(dirfd(top), entry->d_name, AT_REMOVEDIR);
		/* What came into it may stand before this place. */
		rewinddir(top);
	}
	if (rmdir(path) < 0)
		log_line(LOG_WARNING, "cannot remove %s: %m", path);
}

int work_dir_write_worker(const char *path, pid_t pid)
{
	_cleanup_free_ char *file = worker_file(path);
	_cleanup_fclose_ FILE *f = NULL;
	uint64_t ticks;
	int r;

	r = process_start_time(pid, &ticks);
	if (r < 0)
		return r;
	f = file ? fopen(file, "we") : NULL;
	if (!f)
		return file ? -errno : -ENOMEM;
	return fprintf(f, "%d %" PRIu64 "\n", (int)pid, ticks) < 0 || fflush(f) ? -EIO : 0;
}

int work_dir_open_worker(const char *path, int *ret_pidfd)
{
	_cleanup_free_ char *file = worker_file(path);
	_cleanup_fclose_ FILE *f = file ? fopen(file, "re") : NULL;
	uint64_t ticks;
	int pid;

	if (!f)
		return !file ? -ENOMEM : errno == ENOENT ? -ESRCH : -errno;
	if (fscanf(f, "%d %" SCNu64, &pid, &ticks) != 2)
		return -ESRCH;
	return process_open(pid, ticks, ret_pidfd);
}
