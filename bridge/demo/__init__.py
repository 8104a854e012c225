"""
`bridge demo`, and the private RabbitMQ node that it and the tests run.

    run              the demo: node, bridge and page; start here
    page             the page, and the requests of the page
    private_node     a RabbitMQ node in a temporary folder, without root
    node_setup       its ports, files and environment
    processes        child processes that end with this process
    process_keeper   the program that watches over them
"""
