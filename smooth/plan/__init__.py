"""`smooth plan`: what a run will need of memory, time and money, before anything is fetched or rented."""
