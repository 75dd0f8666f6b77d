/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Says which program a VMM is, byte for byte: a path and a version do not, when a
 * package manager has replaced the file since. The file is opened while the process
 * lives and read when the guest runs again. Called by the worker for source and
 * target; a worker that comes when one of them is dead has nothing to say of it.
 */
#include "executable.h"

#include "cleanup.h"
#include "standstill.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <sys/stat.h>

int executable_open(pid_t pid, int pidfd)
{
	_cleanup_close_ int fd = -EBADF;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	/* From its end on the pid may be somebody else's. */
	return fd < 0 || process_has_ended(pidfd) ? -EBADF : TAKE_FD(fd);
}

bool executable_stat(int fd, Upgraded__V1__FileDigest *ret)
{
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return false;
	ret->device = st.st_dev;
	ret->inode = st.st_ino;
	ret->size = (uint64_t)st.st_size;
	ret->changed_ns = (uint64_t)st.st_ctim.tv_sec * 1000000000 + (uint64_t)st.st_ctim.tv_nsec;
	return true;
}

static void free_context(EVP_MD_CTX **ctx)
{
	EVP_MD_CTX_free(*ctx);
}

static bool digest(int fd, unsigned char ret[EVP_MAX_MD_SIZE])
{
	__attribute__((cleanup(free_context))) EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	_cleanup_free_ char *buf = malloc(1 << 16);
	off_t at = 0;
	ssize_t n;

	if (!ctx || !buf || !EVP_DigestInit_ex(ctx, EVP_sha256(), NULL))
		return false;
	while ((n = pread(fd, buf, 1 << 16, at)) > 0) {
		if (!EVP_DigestUpdate(ctx, buf, (size_t)n))
			return false;
		at += n;
	}
	return n == 0 && at > 0 && EVP_DigestFinal_ex(ctx, ret, NULL);
}

void executable_sha256(int fd, char ret[SHA256_TEXT])
{
	unsigned char bytes[EVP_MAX_MD_SIZE];

	*ret = '\0';
	if (!digest(fd, bytes))
		return;
	for (int i = 0; i < SHA256_TEXT / 2; i++)
		snprintf(ret + 2 * i, 3, "%02x", bytes[i]);
}
