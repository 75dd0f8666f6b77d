/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The status XML of a running domain, /run/libvirt/qemu/NAME.xml. libvirt's daemon
 * writes it at every change and reads it once, when it starts: it takes the pid, the
 * vCPUs' threads and the monitor's path from there, and connects to that QEMU. So a
 * daemon that starts after the file was changed looks after the target.
 *
 * The format has no version and belongs to libvirt. What is known of it is the
 * elements of libvirt 9 to 12, as these write them; one that is not among them may
 * mean something that is tied to the process, and blocks the upgrade. Only these
 * things are ever changed: the pid, the threads, the terminals, the emulator's path,
 * and back to "running" what libvirt saw stop for the upgrade.
 *
 * Pure: no files, no processes. The file is libvirt's and only root can write it; it
 * is read as if a stranger had.
 */
#include "manager/libvirt_status.h"

#include "cleanup.h"

#include <errno.h>
#include <libxml/parser.h>
#include <libxml/xmlsave.h>
#include <libxml/xpath.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER

/* Entities stay unexpanded, nothing is fetched, and nobody prints on our stderr. */
#define PARSE_OPTIONS (XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING)

/* libvirt's qemuDomainObjPrivateXMLFormat() and virDomainObjFormat(), 9.0 to 12.8. */
static const char *const known[] = {
	"agentTimeout",
	"allowReboot",
	"backups",
	"blockjobs",
	"channelTargetDir",
	"chardevStdioLogd",
	"cpu",
	"dbusDaemon",
	"dbusVMState",
	"dbusVMStateIds",
	"devices",
	"domain",
	"fakereboot",
	"fdset",
	"job",
	"libDir",
	"lockstate",
	"memPrealloc",
	"memoryBackingDir",
	"monitor",
	"namespaces",
	"nodename",
	"numad",
	"originalMemlock",
	"prDaemon",
	"preMigrationMemlock",
	"qemuCaps",
	"rememberOwner",
	"slirp",
	"taint",
	"vcpus",
};

static void free_xml(xmlChar **text)
{
	xmlFree(*text);
}

#define _cleanup_xml_ __attribute__((cleanup(free_xml)))

static xmlNode *child(const xmlNode *parent, const char *name)
{
	for (xmlNode *n = parent ? parent->children : NULL; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE && !strcmp((const char *)n->name, name))
			return n;
	return NULL;
}

/* 0: also when there is none, *ret is NULL then. */
static int attribute(xmlNode *n, const char *name, char **ret)
{
	_cleanup_xml_ xmlChar *value = n ? xmlGetNoNsProp(n, (const xmlChar *)name) : NULL;

	*ret = value ? strdup((const char *)value) : NULL;
	return value && !*ret ? -ENOMEM : 0;
}

static int content(xmlNode *n, char **ret)
{
	_cleanup_xml_ xmlChar *value = n ? xmlNodeGetContent(n) : NULL;

	*ret = value && *value ? strdup((const char *)value) : NULL;
	return value && *value && !*ret ? -ENOMEM : 0;
}

/* A number of @n's, from @least to INT_MAX; -EINVAL: it is none. */
static int number(xmlNode *n, const char *name, long least, int *ret)
{
	_cleanup_free_ char *text = NULL;
	char *end;
	long v;

	if (attribute(n, name, &text) < 0)
		return -ENOMEM;
	if (!text || *text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtol(text, &end, 10);
	if (errno || *end || v < least || v > INT_MAX)
		return -EINVAL;
	*ret = (int)v;
	return 0;
}

static int bad(struct error *err, const char *what)
{
	return error_set(err, -EINVAL, "libvirt's status of the domain %s", what);
}

static int parse_vcpus(struct libvirt_status *s, xmlNode *vcpus, struct error *err)
{
	struct libvirt_vcpu *grown;
	int id, tid, r;

	for (xmlNode *n = vcpus ? vcpus->children : NULL; n; n = n->next) {
		if (n->type != XML_ELEMENT_NODE)
			continue;
		r = strcmp((const char *)n->name, "vcpu") ? -EINVAL : number(n, "id", 0, &id);
		if (r >= 0)
			r = number(n, "pid", 1, &tid);
		if (r < 0)
			return r == -ENOMEM ? r : bad(err, "has vCPUs that nobody understands");
		for (size_t i = 0; i < s->n_vcpus; i++)
			if (s->vcpus[i].id == (unsigned)id)
				return bad(err, "has two vCPUs of one number");
		grown = reallocarray(s->vcpus, s->n_vcpus + 1, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		s->vcpus = grown;
		s->vcpus[s->n_vcpus++] = (struct libvirt_vcpu){ .id = (unsigned)id, .tid = tid };
	}
	return s->n_vcpus ? 0 : bad(err, "has no vCPUs");
}

static int parse(struct libvirt_status *s, struct error *err)
{
	xmlNode *root = xmlDocGetRootElement(s->doc), *domain;
	int pid;

	if (!root || strcmp((const char *)root->name, "domstatus"))
		return bad(err, "is no domstatus");
	domain = child(root, "domain");
	if (attribute(root, "state", &s->state) < 0 || attribute(root, "reason", &s->reason) < 0 ||
	    attribute(child(root, "monitor"), "path", &s->monitor) < 0 ||
	    attribute(child(root, "libDir"), "path", &s->lib_dir) < 0 ||
	    content(child(domain, "name"), &s->name) < 0 ||
	    content(child(domain, "uuid"), &s->uuid) < 0 ||
	    content(child(child(domain, "devices"), "emulator"), &s->emulator) < 0)
		return -ENOMEM;
	switch (number(root, "pid", 1, &pid)) {
	case 0:
		break;
	case -ENOMEM:
		return -ENOMEM;
	default:
		return bad(err, "names no process");
	}
	s->pid = pid;
	if (!s->state || !s->name || !s->uuid)
		return bad(err, "names no domain");
	if (!s->monitor || *s->monitor != '/')
		return bad(err, "names no monitor");
	return parse_vcpus(s, child(root, "vcpus"), err);
}

void libvirt_status_freep(struct libvirt_status **status)
{
	struct libvirt_status *s = *status;

	if (!s)
		return;
	xmlFreeDoc(s->doc);
	free(s->name);
	free(s->uuid);
	free(s->state);
	free(s->reason);
	free(s->monitor);
	free(s->lib_dir);
	free(s->emulator);
	free(s->vcpus);
	free(s);
	*status = NULL;
}

int libvirt_status_parse(const char *text, size_t len, struct libvirt_status **ret,
			 struct error *err)
{
	__attribute__((cleanup(libvirt_status_freep))) struct libvirt_status *s = NULL;
	int r;

	if (len > LIBVIRT_STATUS_MAX)
		return error_set(err, -E2BIG, "libvirt's status of the domain has more than %u MiB",
				 LIBVIRT_STATUS_MAX >> 20);
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->doc = xmlReadMemory(text, (int)len, "status.xml", NULL, PARSE_OPTIONS);
	if (!s->doc)
		return bad(err, "is no XML");
	if (xmlGetIntSubset(s->doc))
		return bad(err, "has a document type, which libvirt does not write");
	r = parse(s, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(s);
	return 0;
}

/* ---- what is in the way ---- */

static bool is(const char *a, const char *b)
{
	return a && !strcmp(a, b);
}

static int check_state(const struct libvirt_status *s, struct findings *f)
{
	if (is(s->state, "running") || (is(s->state, "paused") && is(s->reason, "user")))
		return 0;
	return findings_add(f, BLOCKER, "libvirt.state", s->name, "virsh domstate DOMAIN --reason",
			    "libvirt says of %s: %s (%s); it can be upgraded when it runs, or was "
			    "paused by the user",
			    s->name, s->state, s->reason ?: "no reason");
}

/* libvirt writes <job> only while there is one that a restart of its daemon must know of. */
static int check_job(const struct libvirt_status *s, xmlNode *job, struct findings *f)
{
	_cleanup_free_ char *type = NULL, *async = NULL;

	if (!job)
		return 0;
	if (attribute(job, "type", &type) < 0 || attribute(job, "async", &async) < 0)
		return -ENOMEM;
	if ((!type || is(type, "none")) && (!async || is(async, "none")))
		return 0;
	return findings_add(f, BLOCKER, "libvirt.job", s->name,
			    "wait for its end (virsh domjobinfo DOMAIN) or end it (virsh domjobabort "
			    "DOMAIN)",
			    "libvirt is at work on %s: %s", s->name,
			    async && !is(async, "none") ? async : type);
}

static int check_block_jobs(const struct libvirt_status *s, xmlNode *jobs, struct findings *f)
{
	_cleanup_free_ char *active = NULL;

	if (!jobs)
		return 0;
	if (attribute(jobs, "active", &active) < 0)
		return -ENOMEM;
	if (is(active, "no") && !child(jobs, "blockjob"))
		return 0;
	return findings_add(f, BLOCKER, "libvirt.block-job", s->name,
			    "wait for its end (virsh blockjob DOMAIN DISK) or end it (with --abort)",
			    "a disk of %s is being copied, committed or mirrored", s->name);
}

static int check_monitor(const struct libvirt_status *s, xmlNode *monitor, struct findings *f)
{
	_cleanup_free_ char *type = NULL;

	if (attribute(monitor, "type", &type) < 0)
		return -ENOMEM;
	if (is(type, "unix"))
		return 0;
	return findings_add(f, BLOCKER, "libvirt.monitor", s->name,
			    "restart the domain: libvirt gives it a unix socket then",
			    "libvirt talks to %s by a %s, not by a unix socket", s->name,
			    type ?: "monitor of no type");
}

static int check_known(const struct libvirt_status *s, const xmlNode *root, struct findings *f)
{
	for (const xmlNode *n = root->children; n; n = n->next) {
		bool found = n->type != XML_ELEMENT_NODE;
		int r;

		for (size_t i = 0; !found && i < ARRAY_SIZE(known); i++)
			found = !strcmp((const char *)n->name, known[i]);
		if (found)
			continue;
		r = findings_add(
			f, BLOCKER, "libvirt.status-unknown", (const char *)n->name,
			"use an upgraded that knows this version of libvirt",
			"libvirt's status of %s has an element that upgraded does not know: <%s>",
			s->name, n->name);
		if (r < 0)
			return r;
	}
	return 0;
}

int libvirt_status_check(const struct libvirt_status *s, struct findings *f)
{
	xmlNode *root = xmlDocGetRootElement(s->doc);
	int r;

	r = check_state(s, f);
	if (r >= 0)
		r = check_job(s, child(root, "job"), f);
	if (r >= 0)
		r = check_block_jobs(s, child(root, "blockjobs"), f);
	if (r >= 0 && child(child(root, "backups"), "domainbackup"))
		r = findings_add(f, BLOCKER, "libvirt.backup", s->name,
				 "wait for its end or end it (virsh domjobabort DOMAIN)",
				 "libvirt is making a backup of %s", s->name);
	if (r >= 0)
		r = check_monitor(s, child(root, "monitor"), f);
	return r < 0 ? r : check_known(s, root, f);
}

/* ---- making it another process's ---- */

static int set_content(xmlDoc *doc, xmlNode *node, const char *text)
{
	_cleanup_xml_ xmlChar *escaped = xmlEncodeSpecialChars(doc, (const xmlChar *)text);

	if (!escaped)
		return -ENOMEM;
	xmlNodeSetContent(node, escaped);
	return 0;
}

static int set_number(xmlNode *n, const char *name, int value)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", value);
	return xmlSetProp(n, (const xmlChar *)name, (const xmlChar *)text) ? 0 : -ENOMEM;
}

static const struct libvirt_vcpu *find_vcpu(const struct libvirt_vcpu *v, size_t n, unsigned id)
{
	for (size_t i = 0; i < n; i++)
		if (v[i].id == id)
			return &v[i];
	return NULL;
}

static int set_vcpus(struct libvirt_status *s, xmlNode *vcpus, const struct libvirt_vcpu *v,
		     size_t n)
{
	size_t i = 0;

	for (xmlNode *node = vcpus->children; node; node = node->next) {
		if (node->type != XML_ELEMENT_NODE)
			continue;
		/* In the order in which they were parsed. */
		s->vcpus[i].tid = find_vcpu(v, n, s->vcpus[i].id)->tid;
		if (set_number(node, "pid", s->vcpus[i++].tid) < 0)
			return -ENOMEM;
	}
	return 0;
}

int libvirt_status_move(struct libvirt_status *s, pid_t pid, const struct libvirt_vcpu *vcpus,
			size_t n_vcpus, const char *emulator, bool runs, struct error *err)
{
	xmlNode *root = xmlDocGetRootElement(s->doc);
	xmlNode *at = child(child(child(root, "domain"), "devices"), "emulator");
	char *copy;

	if (n_vcpus != s->n_vcpus)
		return error_set(err, -EINVAL, "libvirt knows of %zu vCPUs, the target has %zu",
				 s->n_vcpus, n_vcpus);
	for (size_t i = 0; i < s->n_vcpus; i++)
		if (!find_vcpu(vcpus, n_vcpus, s->vcpus[i].id))
			return error_set(err, -EINVAL, "the target has no vCPU %u", s->vcpus[i].id);
	if (emulator && at) {
		copy = strdup(emulator);
		if (!copy || set_content(s->doc, at, emulator) < 0) {
			free(copy);
			return -ENOMEM;
		}
		free(s->emulator);
		s->emulator = copy;
	}
	if (set_vcpus(s, child(root, "vcpus"), vcpus, n_vcpus) < 0 ||
	    set_number(root, "pid", pid) < 0)
		return -ENOMEM;
	if (runs && strcmp(s->state, "running")) {
		char *state = strdup("running"), *reason = strdup("unpaused");

		if (!state || !reason || !xmlSetProp(root, BAD_CAST "state", BAD_CAST state) ||
		    !xmlSetProp(root, BAD_CAST "reason", BAD_CAST reason)) {
			free(state);
			free(reason);
			return -ENOMEM;
		}
		free(s->state);
		free(s->reason);
		s->state = state;
		s->reason = reason;
	}
	s->pid = pid;
	return 0;
}

int libvirt_status_set_pty(struct libvirt_status *s, const char *chardev, const char *path)
{
	xmlNode *devices = child(child(xmlDocGetRootElement(s->doc), "domain"), "devices");

	/* The target's word: libvirt opens what stands there. */
	if (strncmp(chardev, "char", 4) != 0 || strncmp(path, "/dev/pts/", 9) != 0 ||
	    !path[9] || strspn(path + 9, "0123456789") != strlen(path + 9))
		return 0;
	/* The first serial port is listed again, as the console. */
	for (xmlNode *n = devices ? devices->children : NULL; n; n = n->next) {
		_cleanup_xml_ xmlChar *type = xmlGetNoNsProp(n, BAD_CAST "type");
		_cleanup_free_ char *alias = NULL;
		xmlNode *source = child(n, "source");

		if (attribute(child(n, "alias"), "name", &alias) < 0)
			return -ENOMEM;
		if (!is((const char *)type, "pty") || !is(alias, chardev + 4) || !source)
			continue;
		if (!xmlSetProp(source, BAD_CAST "path", BAD_CAST path) ||
		    (xmlHasProp(n, BAD_CAST "tty") &&
		     !xmlSetProp(n, BAD_CAST "tty", BAD_CAST path)))
			return -ENOMEM;
	}
	return 0;
}

static int format(xmlDoc *doc, int options, char **ret_text, size_t *ret_len)
{
	xmlBuffer *buffer = xmlBufferCreate();
	xmlSaveCtxt *save = buffer ? xmlSaveToBuffer(buffer, "UTF-8", options) : NULL;
	bool failed = !save || xmlSaveDoc(save, doc) < 0;

	/* The end is written by this. */
	if (save && xmlSaveClose(save) < 0)
		failed = true;
	*ret_text = failed ? NULL : strdup((const char *)xmlBufferContent(buffer));
	if (*ret_text)
		*ret_len = strlen(*ret_text);
	xmlBufferFree(buffer);
	return *ret_text ? 0 : -ENOMEM;
}

int libvirt_status_format(const struct libvirt_status *s, char **ret_text, size_t *ret_len)
{
	return format(s->doc, XML_SAVE_NO_DECL, ret_text, ret_len);
}

/* ---- the definition ---- */

static void free_doc(xmlDoc **doc)
{
	xmlFreeDoc(*doc);
}

int libvirt_config_set_emulator(const char *text, size_t len, const char *emulator,
				char **ret_text, size_t *ret_len, struct error *err)
{
	__attribute__((cleanup(free_doc))) xmlDoc *doc =
		len > LIBVIRT_STATUS_MAX
			? NULL
			: xmlReadMemory(text, (int)len, "domain.xml", NULL, PARSE_OPTIONS);
	xmlNode *root = doc ? xmlDocGetRootElement(doc) : NULL;
	xmlNode *at = child(child(root, "devices"), "emulator");

	if (!root || xmlGetIntSubset(doc) || strcmp((const char *)root->name, "domain") || !at)
		return error_set(err, -EINVAL,
				 "libvirt's definition of the domain names no emulator");
	if (set_content(doc, at, emulator) < 0)
		return -ENOMEM;
	return format(doc, XML_SAVE_NO_DECL, ret_text, ret_len);
}
