#!/bin/sh
# ./build.sh [OUTPUT]: compile embed.c with a C compiler alone, against the installed library.
#
# EDGEMOE    folder with include/edgemoe.h and lib/libedgemoe.so; not set: the Python package's
# LLAMA_LIB  folder with libllama.so and the libggml*.so; not set: the llama-cpp-python package's. Not looked at where
#            libedgemoe has its own (a ready wheel, `./dev cross`)
# PYTHON     the interpreter whose packages are meant (default: python3); CC: the compiler (default: gcc)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
package() {
    "${PYTHON:-python3}" -c "import importlib.util, sys
spec = importlib.util.find_spec('$1')
sys.exit('$1 is not installed') if spec is None else print(*spec.submodule_search_locations, sep='\n')"
}
edgemoe=${EDGEMOE:-}
if [ -z "$edgemoe" ]; then
    # An editable install has its library in one folder, and its header in the checkout.
    for folder in $(package edgemoe); do
        if [ -e "$folder/lib/libedgemoe.so" ]; then edgemoe=$folder; fi
    done
fi
include=$edgemoe/include
[ -e "$include/edgemoe.h" ] || include=$here/../../native/include
if [ -e "$edgemoe/lib/libedgemoe-llama.so" ]; then
    # It has its own llama.cpp beside it, and finds that by itself.
    set -- "${1:-embed}" -ledgemoe -Wl,-rpath-link,"$edgemoe/lib"
else
    # libedgemoe has no RUNPATH of its own: the program says where both folders are, and names libllama itself, so that
    # it is loaded before libedgemoe asks for it.
    llama=${LLAMA_LIB:-$(package llama_cpp)/lib}
    set -- "${1:-embed}" -L"$llama" -ledgemoe -Wl,--no-as-needed -lllama -lggml -lggml-base -lggml-cpu \
        -Wl,-rpath,"$llama"
fi
program=$1
shift
exec "${CC:-gcc}" -std=c11 -O2 -Wall -Wextra -Werror "$here/embed.c" -o "$program" \
    -I"$include" -L"$edgemoe/lib" "$@" -Wl,-rpath,"$edgemoe/lib" -pthread
