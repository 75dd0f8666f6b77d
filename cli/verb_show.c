/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl show: everything the daemon knows of one VM. Read-only.
 */
#include "ask.h"
#include "options.h"

static const char doc[] = "Show one VM: its process, its version, and the tier that an upgrade "
			  "of it would use.";

int verb_show(struct cli *cli, int argc, char **argv)
{
	Upgraded__V1__ShowRequest show = UPGRADED__V1__SHOW_REQUEST__INIT;
	struct one_vm args = { .cli = cli };
	Envelope request = ENVELOPE_INIT;

	options_one_vm(&args, false, doc, argc, argv);
	show.name = args.name;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_SHOW;
	request.show = &show;
	return ask_vm(cli, &request, ASK_TIMEOUT_MS);
}
