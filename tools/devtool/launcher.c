/* python.exe of the Windows Python under Wine: loads python3XX.dll, which lies beside it, and is Python's main().

   It does two things more than python.org's.

   Standard streams that are regular files. Wine 8 gives a program such a handle without a name, and its
   GetFileInformationByHandle asks for the name along with everything else and fails (ERROR_INVALID_HANDLE). CPython's
   fstat() rests on that call, so it could not open its standard streams. The parts of the answer can be had one by one:
   python3XX.dll is given a function that does so. The handle itself stays, and with it its position, its append mode,
   and the order of what several processes write.

   A mark that the process has ended by itself. Wine ends a process without a word, and with exit status 0, when the
   kernel writes into memory that is gone. Whoever starts us may name a file in IOCP_LOOP_EXIT_FILE, and finds the exit
   status in it unless the process was killed. */

#include <stdio.h>
#include <windows.h>

#define WIDE_(text) L##text
#define WIDE(text) WIDE_(text)

#define EXIT_FILE_VARIABLE L"IOCP_LOOP_EXIT_FILE"
#define STATUS_NO_PYTHON 103

static wchar_t exit_file[MAX_PATH];

static BOOL WINAPI file_information(HANDLE file, BY_HANDLE_FILE_INFORMATION *information)
{
    FILE_BASIC_INFO basic;
    FILE_STANDARD_INFO standard;
    FILE_ID_INFO id;

    if (GetFileInformationByHandle(file, information))
        return TRUE;
    DWORD error = GetLastError();
    if (error != ERROR_INVALID_HANDLE
        || !GetFileInformationByHandleEx(file, FileBasicInfo, &basic, sizeof basic)
        || !GetFileInformationByHandleEx(file, FileStandardInfo, &standard, sizeof standard)
        || !GetFileInformationByHandleEx(file, FileIdInfo, &id, sizeof id)) {
        SetLastError(error);
        return FALSE;
    }
    memset(information, 0, sizeof *information);
    information->dwFileAttributes = basic.FileAttributes;
    memcpy(&information->ftCreationTime, &basic.CreationTime, sizeof(FILETIME));
    memcpy(&information->ftLastAccessTime, &basic.LastAccessTime, sizeof(FILETIME));
    memcpy(&information->ftLastWriteTime, &basic.LastWriteTime, sizeof(FILETIME));
    information->dwVolumeSerialNumber = (DWORD)id.VolumeSerialNumber;
    information->nFileSizeHigh = standard.EndOfFile.HighPart;
    information->nFileSizeLow = standard.EndOfFile.LowPart;
    information->nNumberOfLinks = standard.NumberOfLinks;
    memcpy(&information->nFileIndexLow, &id.FileId.Identifier[0], sizeof(DWORD));
    memcpy(&information->nFileIndexHigh, &id.FileId.Identifier[4], sizeof(DWORD));
    return TRUE;
}

/* Lets every call that `module` makes to the imported function of that name go to `replacement`. */
static void replace_import(HMODULE module, const char *name, void *replacement)
{
    BYTE *base = (BYTE *)module;
    IMAGE_NT_HEADERS *headers = (void *)(base + ((IMAGE_DOS_HEADER *)base)->e_lfanew);
    IMAGE_DATA_DIRECTORY *imports = &headers->OptionalHeader.DataDirectory[IMAGE_DIRECTORY_ENTRY_IMPORT];
    IMAGE_IMPORT_DESCRIPTOR *dll = (void *)(base + imports->VirtualAddress);

    for (; dll->Name; dll++) {
        IMAGE_THUNK_DATA *wanted = (void *)(base + dll->OriginalFirstThunk);
        IMAGE_THUNK_DATA *address = (void *)(base + dll->FirstThunk);
        for (; wanted->u1.AddressOfData; wanted++, address++) {
            IMAGE_IMPORT_BY_NAME *by_name = (void *)(base + wanted->u1.AddressOfData);
            DWORD protection;
            if (IMAGE_SNAP_BY_ORDINAL(wanted->u1.Ordinal) || strcmp((char *)by_name->Name, name) != 0)
                continue;
            VirtualProtect(address, sizeof *address, PAGE_READWRITE, &protection);
            address->u1.Function = (ULONG_PTR)replacement;
            VirtualProtect(address, sizeof *address, protection, &protection);
        }
    }
}

static void leave_mark(UINT status)
{
    char mark[16];
    DWORD written;

    if (!exit_file[0])
        return;
    HANDLE file = CreateFileW(exit_file, GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, 0, NULL);
    WriteFile(file, mark, snprintf(mark, sizeof mark, "%u", status), &written, NULL);
    CloseHandle(file);
}

/* What os._exit() and abort() end in. */
static void WINAPI exit_process(UINT status)
{
    leave_mark(status);
    ExitProcess(status);
}

int wmain(int argc, wchar_t **argv)
{
    /* Ours alone: a child process of Python's must not write to it. */
    GetEnvironmentVariableW(EXIT_FILE_VARIABLE, exit_file, MAX_PATH);
    SetEnvironmentVariableW(EXIT_FILE_VARIABLE, NULL);

    HMODULE dll = LoadLibraryW(WIDE(PYTHON_DLL));
    int (*py_main)(int, wchar_t **) = dll ? (void *)GetProcAddress(dll, "Py_Main") : NULL;
    if (!py_main) {
        fprintf(stderr, "python.exe: cannot load " PYTHON_DLL " (error %lu)\n", GetLastError());
        return STATUS_NO_PYTHON;
    }
    replace_import(dll, "GetFileInformationByHandle", file_information);
    replace_import(GetModuleHandleW(L"ucrtbase.dll"), "ExitProcess", exit_process);
    int status = py_main(argc, argv);
    leave_mark(status);
    return status;
}
