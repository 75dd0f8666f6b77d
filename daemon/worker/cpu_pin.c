/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keeping the guest's CPU what it is in another QEMU. "max" and "host" mean
 * "all that this QEMU can do here": a newer QEMU would show the running guest
 * features that it has never seen, or take some away; the migration stream
 * does not tell. So the features of a running vCPU are read from the source,
 * and the target's "max" is given an explicit value for everything in which it
 * differs. Any other model is left alone: a versioned one ("EPYC-v2") says
 * what it is, and a plain name ("EPYC", "qemu64") is bound to a version and to
 * compatible properties by the machine type, which is carried over exactly.
 *
 * Called by source_read() for the source and by the probe for the target. Owns
 * nothing of its own; struct source keeps the results. Only asks.
 */
#include "cpu_pin.h"

#include "qmp_query.h"

#include <string.h>

/* A property may change what others show ("migratable"): ask again until it holds. */
#define PASSES 4

/* State of the device, not features of a CPU. */
static const char *const no_features[] = { "realized", "hotplugged", "hotpluggable",
					   "start-powered-off" };

/* Numbers and names that CPUID shows. */
static const char *const identity[] = { "family",   "model", "stepping", "vendor",
					"model-id", "level", "xlevel",	 "xlevel2" };

static bool is_feature(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(no_features); i++)
		if (!strcmp(name, no_features[i]))
			return false;
	/* "sse4_1" is another name of "sse4-1". */
	return !strchr(name, '_');
}

static bool is_identity(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(identity); i++)
		if (!strcmp(name, identity[i]))
			return true;
	return false;
}

static const char *cpu_argument(char **argv)
{
	const char *value = NULL;

	for (char **a = argv; *a && a[1]; a++)
		if (**a == '-' && !strcmp(*a + strspn(*a, "-"), "cpu"))
			value = a[1];
	return value;
}

/*
 * Of "max,+avx,svm=off,hv-spinlocks=0x1fff" only the last option is kept: the
 * others are yes or no, and shown by the vCPU; "+avx" would even win over ours.
 */
static char *value_options(const char *cpu)
{
	static const char *const yes_or_no[] = {
		"on", "off", "true", "false", "yes", "no", "y", "n"
	};
	char *kept = calloc(1, strlen(cpu) + 1);
	const char *at = strchr(cpu, ',');

	while (kept && at) {
		const char *option = at + 1, *value;
		size_t len;
		bool boolean = false;

		at = strchr(option, ',');
		while (at && at[1] == ',')
			at = strchr(at + 2, ',');
		len = at ? (size_t)(at - option) : strlen(option);
		value = memchr(option, '=', len);
		if (!value)
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(yes_or_no); i++)
			boolean |= strlen(yes_or_no[i]) == len - (size_t)(value + 1 - option) &&
				   !strncmp(value + 1, yes_or_no[i], strlen(yes_or_no[i]));
		if (boolean)
			continue;
		strcat(kept, ",");
		strncat(kept, option, len);
	}
	return kept;
}

/* Is it a property whose value the guest can see? */
static bool is_pinned(struct json_object *property)
{
	const char *name = json_get_string(property, "name");
	const char *type = json_get_string(property, "type");

	if (!name || !type)
		return false;
	return strcmp(type, "bool") ? is_identity(name) : is_feature(name);
}

static struct json_object *get_args(const char *path, const char *property)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "path", json_object_new_string(path));
	json_object_object_add(args, "property", json_object_new_string(property));
	return args;
}

/* All in one command, which came with QEMU 10.1. -ENOSYS: not to this one. */
static int read_props_at_once(struct qmp *qmp, const char *path, struct json_object *props,
			      struct error *err)
{
	struct json_object *args = json_object_new_object(), *paths = json_object_new_array();
	struct json_object *answer = NULL, *list = NULL;
	int r;

	json_object_array_add(paths, json_object_new_string(path));
	json_object_object_add(args, "paths", paths);
	r = qmp_execute(qmp, "qom-list-get", args, &answer, err);
	if (r < 0)
		return r;
	if (json_array_size(json_get_array(answer, NULL)))
		list = json_get_array(json_object_array_get_idx(answer, 0), "properties");
	for (size_t i = 0; i < json_array_size(list); i++) {
		struct json_object *p = json_object_array_get_idx(list, i), *value;

		/* Some cannot be read. */
		if (is_pinned(p) && json_object_object_get_ex(p, "value", &value))
			json_object_object_add(props, json_get_string(p, "name"),
					       json_object_get(value));
	}
	json_object_put(answer);
	return 0;
}

/* A vCPU has some hundreds of them: all commands are sent at once. */
static int read_props_one_by_one(struct qmp *qmp, const char *path, struct json_object *props,
				 struct error *err)
{
	_cleanup_free_ struct qmp_call *calls = NULL;
	_cleanup_free_ const char **names = NULL;
	struct json_object *list = NULL;
	size_t size, n = 0;
	int r;

	r = qmp_qom_list(qmp, path, &list, err);
	if (r < 0)
		return r;
	size = json_array_size(json_get_array(list, NULL));
	calls = calloc(size + 1, sizeof(*calls));
	names = calloc(size + 1, sizeof(*names));
	for (size_t i = 0; calls && names && i < size; i++) {
		struct json_object *p = json_object_array_get_idx(list, i);

		if (!is_pinned(p))
			continue;
		names[n] = json_get_string(p, "name");
		calls[n].command = "qom-get";
		calls[n].args = get_args(path, names[n]);
		n++;
	}
	r = calls && names ? qmp_execute_all(qmp, calls, n, err) : -ENOMEM;
	/* Some cannot be read. */
	for (size_t i = 0; i < n && r >= 0; i++)
		if (calls[i].r >= 0)
			json_object_object_add(props, names[i], TAKE_PTR(calls[i].value));
	if (calls)
		qmp_calls_clear(calls, n);
	json_object_put(list);
	return r;
}

static int read_props(struct qmp *qmp, const char *path, struct json_object *props,
		      struct error *err)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	int r;

	r = read_props_at_once(qmp, path, props, &why);
	if (r == -ENOSYS)
		return read_props_one_by_one(qmp, path, props, err);
	if (r < 0)
		error_move(err, &why);
	return r;
}

/* What @qmp makes of the model with @set. -EREMOTEIO: it cannot say. */
static int expand(struct qmp *qmp, const char *type, const char *model, struct json_object *set,
		  struct json_object **ret_props, struct error *err)
{
	struct json_object *args = json_object_new_object(), *m = json_object_new_object();
	struct json_object *answer = NULL, *props = NULL;
	int r;

	json_object_object_add(m, "name", json_object_new_string(model));
	if (set)
		json_object_object_add(m, "props", json_object_get(set));
	json_object_object_add(args, "type", json_object_new_string(type));
	json_object_object_add(args, "model", m);
	r = qmp_execute(qmp, "query-cpu-model-expansion", args, &answer, err);
	if (r < 0)
		return r;
	if (json_object_object_get_ex(answer, "model", &m) &&
	    json_object_object_get_ex(m, "props", &props))
		*ret_props = json_object_get(props);
	else
		r = error_set(err, -EREMOTEIO, "the CPU model was expanded to nothing");
	json_object_put(answer);
	return r;
}

/*
 * The properties of a vCPU are features, and knobs of how QEMU works them out.
 * A static expansion has the features only.
 */
static int read_names(struct source *s, struct qmp *qmp, struct error *err)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	int r;

	r = expand(qmp, "static", s->cpu_model, NULL, &s->cpu_names, &why);
	if (r == -EREMOTEIO || r == -ENOSYS)
		return 0; /* then a knob counts as a feature */
	if (r < 0)
		error_move(err, &why);
	return r;
}

int cpu_pin_read(struct source *s, struct qmp *qmp, struct error *err)
{
	struct json_object *cpus = NULL, *type = NULL;
	const char *path, *name, *argument = cpu_argument(s->argv);
	int r;

	r = qmp_execute(qmp, "query-cpus-fast", NULL, &cpus, err);
	if (r < 0)
		return r;
	path = json_array_size(json_get_array(cpus, NULL))
		       ? json_get_string(json_object_array_get_idx(cpus, 0), "qom-path")
		       : NULL;
	if (path)
		r = qmp_qom_get(qmp, path, "type", &type, err);
	name = r >= 0 ? json_object_get_string(type) : NULL;
	if (name && (!strncmp(name, "max-", 4) || !strncmp(name, "host-", 5))) {
		s->cpu_model = strndup(name, strcspn(name, "-"));
		s->cpu_options = value_options(argument ?: "");
		s->cpu_props = json_object_new_object();
		r = s->cpu_model && s->cpu_options ? read_props(qmp, path, s->cpu_props, err)
						   : -ENOMEM;
		if (r >= 0)
			r = read_names(s, qmp, err);
	}
	json_object_put(type);
	json_object_put(cpus);
	return r;
}

/* The value that the source has; a feature it has never heard of is off. */
static struct json_object *wanted(struct source *s, const char *name)
{
	struct json_object *value = NULL;

	if (!json_object_object_get_ex(s->cpu_props, name, &value) && !is_identity(name))
		return json_object_new_boolean(0);
	return json_object_get(value);
}

/* Adds to @set what differs in @props. Returns how much that was. */
static size_t compare(struct source *s, struct json_object *props, struct json_object *set)
{
	size_t differs = 0;

	json_object_object_foreach(props, name, value)
	{
		struct json_object *want;

		if (!is_identity(name) &&
		    (!json_object_is_type(value, json_type_boolean) || !is_feature(name)))
			continue;
		want = wanted(s, name);
		if (want && !json_object_equal(want, value)) {
			json_object_object_add(set, name, json_object_get(want));
			differs++;
		}
		json_object_put(want);
	}
	return differs;
}

static void print_value(FILE *out, struct json_object *value)
{
	if (json_object_is_type(value, json_type_boolean)) {
		fputs(json_object_get_boolean(value) ? "on" : "off", out);
		return;
	}
	for (const char *c = json_object_get_string(value); *c; c++)
		fputs(*c == ',' ? ",," : (char[]){ *c, '\0' }, out);
}

static int print_cpu(struct source *s, struct json_object *set)
{
	size_t size;
	FILE *out;

	free(s->cpu);
	s->cpu = NULL;
	out = open_memstream(&s->cpu, &size);
	if (!out)
		return -ENOMEM;
	fprintf(out, "%s%s", s->cpu_model, s->cpu_options);
	json_object_object_foreach(set, name, value)
	{
		fprintf(out, ",%s=", name);
		print_value(out, value);
	}
	return fclose(out) ? -ENOMEM : 0;
}

/* Would the guest miss it? Hyper-V's are no CPUID words to QEMU, but features. */
static bool guest_sees(struct source *s, const char *name)
{
	return !s->cpu_names || !strncmp(name, "hv-", 3) ||
	       json_object_object_get_ex(s->cpu_names, name, NULL);
}

/* Lists what is still not as in the source: features (@seen) or knobs. */
static int list_differences(struct source *s, struct json_object *props, bool seen,
			    char **ret_names)
{
	size_t size;
	FILE *out = open_memstream(ret_names, &size);
	bool any = false;

	if (!out)
		return -ENOMEM;
	json_object_object_foreach(s->cpu_props, name, value)
	{
		struct json_object *now = NULL;
		bool there = json_object_object_get_ex(props, name, &now);
		bool on = json_object_is_type(value, json_type_boolean) &&
			  json_object_get_boolean(value);

		/* "level" and the like follow from the features when it is realized. */
		if (is_identity(name) || (there ? json_object_equal(now, value) : !on) ||
		    guest_sees(s, name) != seen)
			continue;
		fprintf(out, "%s%s", any ? ", " : "", name);
		any = true;
	}
	return fclose(out) ? -ENOMEM : 0;
}

static int report(struct source *s, struct json_object *props, struct findings *f)
{
	_cleanup_free_ char *features = NULL, *knobs = NULL;
	int r;

	r = list_differences(s, props, true, &features);
	if (r >= 0)
		r = list_differences(s, props, false, &knobs);
	if (r >= 0 && *features)
		r = findings_add(
			f, UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER, "target.cpu", s->cpu_model,
			"choose a target that can; the guest uses this CPU already",
			"the target cannot give the guest's CPU as it is, it differs in: %s",
			features);
	if (r >= 0 && *knobs)
		r = findings_add(f, UPGRADED__V1__SEVERITY__SEVERITY_NOTE, "target.cpu-knobs",
				 s->cpu_model, NULL,
				 "settings of the CPU model that the target no longer has, or sets "
				 "by itself: %s",
				 knobs);
	return r;
}

int cpu_pin_resolve(struct source *s, struct qmp *target, struct findings *f, struct error *err)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	struct json_object *set, *props = NULL;
	int r = 0;

	if (!s->cpu_model)
		return 0;
	set = json_object_new_object();
	for (int pass = 0; pass < PASSES && r >= 0; pass++) {
		json_object_put(props);
		props = NULL;
		r = expand(target, "full", s->cpu_model, set, &props, &why);
		if (r >= 0 && !compare(s, props, set))
			break;
	}
	if (r >= 0)
		r = print_cpu(s, set);
	if (r >= 0)
		r = report(s, props, f);
	else if (r == -EREMOTEIO || r == -ENOSYS)
		r = findings_add(f, UPGRADED__V1__SEVERITY__SEVERITY_WARNING, "target.cpu",
				 s->cpu_model,
				 "name a versioned CPU model when the guest is started next",
				 "whether the CPU model %s stays as it is cannot be asked: %s",
				 s->cpu_model, why.text);
	else
		error_move(err, &why);
	json_object_put(props);
	json_object_put(set);
	return r;
}
