# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2034,SC2154
#
# The kernel's source, plain or with kernel/ of this project on top. Sourced after common.sh, never run.
#
# kernel_ours is cheap and says what --patched would put on top; kernel_source and kernel_tree need the lock
# "kernel" and $scratch (make_scratch), and find or make the source in the cache:
#
#	linux/VERSION/source	as the archive has it; never written to
#	linux/VERSION/patched	hard links to it, but for the files we change or add
#
# Objects go beside these, one directory per purpose, so that a change compiles what it touches and nothing else.

package=linux-source-7.3
release=https://cdn.kernel.org/pub/linux/kernel/v7.x/linux-7.3.4.tar.xz		# when the archive has no 7.3 any more

# SHA-256 of the source tarballs that were tried.
known_tarballs='
76df1affb19f24926949369be1d74b60071c963c598ce8780bddd4bbf0fc3bc4  7.3.4-1~bpo13+1
'

project=$(dirname "$testbed")

KERNEL_TARBALL=
[ -d "${KERNEL_SRC:-}" ] || KERNEL_TARBALL=${KERNEL_SRC:-}
[ -z "$KERNEL_TARBALL" ] || [ -f "$KERNEL_TARBALL" ] || die "KERNEL_SRC=$KERNEL_SRC: no such file or directory"

# kernel_ours: our own whole files in own_files, as paths relative to kernel/ and so to the kernel tree, those of
# them that the kernel is compiled from in own_sources, and in own_patches our patches in their order.
# include/uapi/linux/kvm.h is for user space: on top of the system's header, it is no file of the kernel's.
kernel_ours() {
	local name
	[ -d "$project/kernel" ] || die "--patched: this project has no kernel/ yet"
	mapfile -t own_files < <(cd "$project/kernel" &&
		find . -type f ! -path './patches/*' ! -path './include/uapi/linux/kvm.h' \
			-regex '\./\(arch\|virt\|include\|tools\|Documentation\)/.*' -printf '%P\n' | sort)
	mapfile -t own_sources < <(printf '%s\n' "${own_files[@]}" | grep -v '^tools/\|^Documentation/\|^$')
	own_patches=()
	while IFS= read -r name; do
		# A commit of nothing but new files has a patch without a hunk, which is for kernel/export alone.
		! grep -q "^diff --git" "$project/kernel/patches/$name" || own_patches+=("$name")
	done < <(kernel_series)
}

# kernel_series: the names of all patches in their order, without comments and what stands after them.
kernel_series() {
	[ ! -e "$project/kernel/patches/series" ] ||
		sed 's/#.*//; s/[[:space:]]+[[:space:]].*//; s/[[:space:]]*$//; /^$/d' "$project/kernel/patches/series"
}

# kernel_fingerprint FILE...: what our patches and these files under kernel/ contribute to a name in the cache.
kernel_fingerprint() {
	(
		cd "$project/kernel" 2>/dev/null || exit 0
		[ $# = 0 ] || sha256sum -- "$@"
		[ ${#own_patches[@]} = 0 ] || sha256sum -- "${own_patches[@]/#/patches/}"
	)
}

# kernel_unpack TARBALL DIR: DIR exists afterwards, whole
kernel_unpack() {
	say "unpacking the kernel source"
	mkdir -p "$scratch/src" "$(dirname "$2")"
	attend tar -x -f "$1" -C "$scratch/src" --strip-components=1
	rm -rf "$2"
	mv -T "$scratch/src" "$2"
}

# kernel_source: where the unchanged source is: $source; objects go under $trees.
kernel_source() {
	local version tarball sum
	if [ -d "${KERNEL_SRC:-}" ]; then
		source=$(realpath "$KERNEL_SRC")
		trees=$cache/linux/dir-$(printf %s "$source" | sha256sum | cut -c1-16)
		return
	elif [ "$KERNEL_TARBALL" ]; then
		trees=$cache/linux/$(sha256sum <"$KERNEL_TARBALL" | cut -c1-16)
		source=$trees/source
		[ -d "$source" ] || kernel_unpack "$KERNEL_TARBALL" "$source"
		return
	fi

	# A source that is here already is used without asking whether there is a newer one.
	source=$(printf '%s\n' "$cache"/linux/7.*/source "$cache"/linux/linux-7.*/source | sed '/\*/d' | sort -V | tail -n 1 || true)
	if [ "$source" ]; then
		trees=$(dirname "$source")
		return
	fi

	say "asking the archive for $package"
	version=
	if private_apt_begin "$scratch/apt"; then
		version=$(private_apt_cache show "$package" 2>/dev/null | sed -n 's/^Version: //p' | sort -V | tail -n 1 || true)
	fi
	if [ "$version" ]; then
		trees=$cache/linux/$version
		say "fetching $package $version"
		(cd "$scratch" && private_apt -qq download "$package=$version" >&2)
		dpkg-deb -x "$scratch/$package"_*.deb "$scratch/deb"
		tarball=$(echo "$scratch/deb/usr/src/$package".tar.*)
	else
		trees=$cache/linux/$(basename "$release" .tar.xz)
		say "the archive offers no $package, fetching $release"
		tarball=$scratch/$(basename "$release")
		attend python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' "$release" "$tarball" \
			2>"$scratch/fetch.log" || {
			tail -n 1 "$scratch/fetch.log" >&2
			die "neither the archive has $package nor can $release be fetched; set KERNEL_SRC to a directory or tarball of Linux 7.3 or newer"
		}
	fi
	sum=$(sha256sum <"$tarball" | cut -d' ' -f1)
	grep -q "^$sum " <<<"$known_tarballs" ||
		say "note: this source tarball (SHA-256 $sum) is not one of those tried before"
	source=$trees/source
	kernel_unpack "$tarball" "$source"
}

# kernel_tree [--patched]: the tree to compile: $tree. After kernel_source, and kernel_ours for --patched.
# A file that is the same as last time keeps its time stamp, so make compiles only what differs.
kernel_tree() {
	local new f p
	tree=$source
	[ "${1:-}" ] || return 0
	tree=$trees/patched
	new=$scratch/patched
	say "applying kernel/ to the source: ${#own_files[@]} files, ${#own_patches[@]} patches"
	mkdir -p "$trees"
	cp -al "$source" "$new" 2>/dev/null || { rm -rf "$new"; cp -a "$source" "$new"; }	# another file system: no links
	rm -rf "$new/.git"
	for f in "${own_files[@]}"; do
		install -D -m 644 "$project/kernel/$f" "$scratch/one"
		mkdir -p "$new/$(dirname "$f")"
		mv -f "$scratch/one" "$new/$f"
	done
	for p in "${own_patches[@]}"; do
		patch --directory="$new" --strip=1 --force --quiet --no-backup-if-mismatch \
			<"$project/kernel/patches/$p" >&2 || die "kernel/patches/$p does not apply to $source"
	done
	if [ -d "$tree" ]; then
		find "$new" "$tree" -type f -links 1 -printf '%P\n' | sort -u | while IFS= read -r f; do
			[ -e "$new/$f" ] || continue
			if cmp -s "$new/$f" "$tree/$f"; then
				touch -r "$tree/$f" "$new/$f"
			else
				cp -p "$new/$f" "$scratch/one"	# do not touch the file the unchanged tree shares
				mv -f "$scratch/one" "$new/$f"
				touch "$new/$f"
			fi
		done
		rm -rf "$tree"
	fi
	mv -T "$new" "$tree"
}

# kernel_configure OBJECTS FRAGMENT...: tinyconfig and the fragments; then "${kmake[@]}" is make. OBJECTS may be
# given more arguments of make by setting kmake_more.
kernel_configure() {
	local lost objects=$1
	shift
	kmake=(make -s -C "$tree" O="$objects" KBUILD_BUILD_USER=upgraded KBUILD_BUILD_HOST=testbed "${kmake_more[@]}")
	mkdir -p "$objects"
	"${kmake[@]}" tinyconfig >&2
	(cd "$tree" && ./scripts/kconfig/merge_config.sh -m -O "$objects" "$objects/.config" "$@") >"$scratch/merge.log" ||
		{ cat "$scratch/merge.log" >&2; die "the configuration fragments do not merge"; }
	"${kmake[@]}" olddefconfig >&2
	# The last word on an option counts. What Kconfig dropped has changed its name, or misses something it depends on.
	lost=$(cat -- "$@" | awk '
		match($0, /^(# )?CONFIG_[A-Z0-9_]+/) { option = $0; sub(/^# /, "", option); sub(/[ =].*/, "", option); want[option] = $0 }
		END { for (option in want) print want[option] }' | sort | comm -23 - <(sort "$objects/.config") |
		grep -v ' is not set$' || true)
	[ -z "$lost" ] || die "Kconfig did not take these lines of the configuration:
$lost"
}
