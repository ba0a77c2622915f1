from levelhead.cli import main

main()
